"""Which flow a packet belongs to: the only place that knows what a flow is made of."""

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.lookup import Ends
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.memory.snapshot import Affinity, ServiceColumn
from loaded_mp.packet.address import Address128


@compiled
def client_flow(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity of a service has it."""
    row = work.snapshot.services[service]
    high, low = np.uint64(row[ServiceColumn.NETWORK_HIGH]), np.uint64(row[ServiceColumn.NETWORK_LOW])
    return _flow(work, service, ends, row[ServiceColumn.AFFINITY], Address128(high, low))


@compiled
def flow_before(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity had it that the service had before."""
    row = work.snapshot.services[service]
    high, low = np.uint64(row[ServiceColumn.BEFORE_HIGH]), np.uint64(row[ServiceColumn.BEFORE_LOW])
    return _flow(work, service, ends, row[ServiceColumn.BEFORE], Address128(high, low))


@compiled
def _flow(work: Work, service: int, ends: Ends, affinity: int, network: Address128) -> Flow:
    """The service in the lower 16 bits of the scope; protocol and ports in the others, where they count."""
    scope = np.uint64(service)
    if affinity == Affinity.CONNECTION:
        scope |= np.uint64(ends.protocol << 16 | ends.client_port << 24 | ends.service_port << 40)
    client = Address128(ends.client.high & network.high, ends.client.low & network.low)
    return flow_of(work.table.secret, scope, client)
