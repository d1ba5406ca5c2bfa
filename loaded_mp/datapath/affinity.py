"""Which flow a packet belongs to: the only place that knows what a flow is made of.

The scope of a flow has the service in its lower 16 bits and the number of the affinity in its upper 8, of
which the first is 0: where it is 1, the entry is none of a client (`locality.py`). Protocol and ports lie
between, where they count.
"""

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.lookup import Ends
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.flows.table import find
from loaded_mp.memory.snapshot import Affinity, BeforeColumn, ServiceColumn
from loaded_mp.packet.address import Address128
from loaded_mp.packet.reset import Step

#: Numbers that affinities of a service have.
NUMBERS = 128
#: By how many bits a scope is to be shifted to have its number.
NUMBER_SHIFT = 56
_PORTS = np.uint64(((1 << NUMBER_SHIFT) - 1) & ~0xFFFF)


@compiled
def client_flow(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity of a service has it."""
    row = work.snapshot.services[service]
    high, low = np.uint64(row[ServiceColumn.NETWORK_HIGH]), np.uint64(row[ServiceColumn.NETWORK_LOW])
    affinity, number = row[ServiceColumn.AFFINITY], row[ServiceColumn.NUMBER]
    return _flow(work, service, ends, affinity, Address128(high, low), number)


@compiled
def known_flow(work: Work, service: int, ends: Ends, step: int) -> Flow:
    """The flow that a packet goes on with, if only by an affinity that its service had before; else its own.

    A connection must find at each of its packets what it found at its first. Where clients were flows, all
    that a client with such a flow begins goes with it, but for a connection that is a flow of its own. Where
    connections were flows, each of those goes on with it, and nothing else does.
    """
    flow = client_flow(work, service, ends)
    row = work.snapshot.services[service]
    before = row[ServiceColumn.BEFORE]
    if before == 0:
        return flow
    by_connection = row[ServiceColumn.AFFINITY] == Affinity.CONNECTION
    if by_connection and find(work.table, flow)[0] >= 0:
        return flow
    for at in range(before):
        was = work.snapshot.affinities_before[service, at]
        if by_connection and step == Step.BEGINS and was[BeforeColumn.AFFINITY] != Affinity.CONNECTION:
            return flow
        high, low = np.uint64(was[BeforeColumn.NETWORK_HIGH]), np.uint64(was[BeforeColumn.NETWORK_LOW])
        affinity, number = was[BeforeColumn.AFFINITY], was[BeforeColumn.NUMBER]
        older = _flow(work, service, ends, affinity, Address128(high, low), number)
        if find(work.table, older)[0] >= 0:
            return older
    return flow


@compiled
def is_connection(flow: Flow) -> bool:
    """Whether a flow is one connection."""
    return bool(flow.scope & _PORTS)


@compiled
def _flow(work: Work, service: int, ends: Ends, affinity: int, network: Address128, number: int) -> Flow:
    scope = np.uint64(service | number << NUMBER_SHIFT)
    if affinity == Affinity.CONNECTION:
        scope |= np.uint64(ends.protocol << 16 | ends.client_port << 24 | ends.service_port << 40)
    client = Address128(ends.client.high & network.high, ends.client.low & network.low)
    return flow_of(work.table.secret, scope, client)
