"""Connections between a client and a backend that do not come by a VIP although others of theirs do.

Where replies go past conntrack, nothing else tells these from the others. They are known by a hash, in a set
that forgets what its bucket has no room for.
"""

import numpy as np

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.lookup import Ends
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.siphash import siphash
from loaded_mp.memory.shared import MAX_DIRECT

#: Connections of one bucket.
_WAYS = 8
_BUCKET = np.uint64(MAX_DIRECT - _WAYS)
_WAY_AT, _WAY = np.uint64(40), np.uint64(_WAYS - 1)
_16, _32 = np.uint64(16), np.uint64(32)


@compiled
def connection_of(secret: Words, ends: Ends) -> np.uint64:
    """The hash of the connection with these ends, whichever of them the packet comes from."""
    ports = np.uint64(ends.client_port) << _16 | np.uint64(ends.service_port)
    scope = siphash(secret, np.uint64(ends.protocol) << _32 | ports, ends.server.high, ends.server.low)
    return siphash(secret, scope, ends.client.high, ends.client.low)


@compiled
def note(direct: Words, connection: np.uint64) -> None:
    """Let the set, uint64[MAX_DIRECT], hold a connection, in the place of another one where it has to."""
    if not noted(direct, connection):
        direct[signed(connection & _BUCKET) + signed(connection >> _WAY_AT & _WAY)] = connection


@compiled
def noted(direct: Words, connection: np.uint64) -> bool:
    """Whether the set holds a connection."""
    first = signed(connection & _BUCKET)
    found = False
    for i in range(_WAYS):
        found |= direct[first + i] == connection
    return found
