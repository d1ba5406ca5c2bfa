"""Which flow a packet belongs to: the only place that knows what a flow is made of."""

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.lookup import Ends
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.flows.siphash import siphash
from loaded_mp.packet.address import Address128

#: In the scope of a flow that remembers a VIP: no client's flow has it.
_REPLY = np.uint64(1 << 63)


@compiled
def client_flow(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity of a service has it."""
    return flow_of(work.table.secret, np.uint64(service), ends.client)


@compiled
def reply_flow(work: Work, backend: Address128, ends: Ends) -> Flow:
    """The flow that remembers the VIP of a connection to a backend of several VIPs."""
    numbers = np.uint64(ends.protocol << 32 | ends.client_port << 16 | ends.service_port)
    scope = siphash(work.table.secret, numbers, backend.high, backend.low) | _REPLY
    return flow_of(work.table.secret, scope, ends.client)
