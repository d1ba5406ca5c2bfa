"""What tells flows apart."""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.siphash import siphash
from loaded_mp.packet.address import Address128


class Flow(NamedTuple):
    """What one entry of the flow table is about."""

    hash: np.uint64  #: by which the table finds it
    scope: np.uint64  #: what the address alone does not say: service, protocol, ports
    address: Address128  #: of the client


@compiled
def flow_of(secret: Words, scope: np.uint64, address: Address128) -> Flow:
    """The flow of an address within a scope; `secret` is uint64[2]."""
    return Flow(siphash(secret, scope, address.high, address.low), scope, address)
