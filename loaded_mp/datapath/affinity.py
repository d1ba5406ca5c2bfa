"""Which flow a packet belongs to: the only place that knows what a flow is made of.

The scope of a flow has the service in its lower 16 bits and the number of the affinity in its upper 8, of
which the first is 0: where it is 1, the entry is none of a client (`locality.py`). Protocol and ports lie
between, where they count.
"""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.lookup import Ends
from loaded_mp.datapath.system import Longs
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.flows.table import find
from loaded_mp.memory.snapshot import Affinity, AffinityColumn, ServiceColumn
from loaded_mp.packet.address import Address128
from loaded_mp.packet.reset import Step

#: Numbers that affinities of a service have.
NUMBERS = 128
#: By how many bits a scope is to be shifted to have its number.
NUMBER_SHIFT = 56
_SERVICE = 0xFFFF
_PORTS = np.uint64((1 << NUMBER_SHIFT) - 1 - _SERVICE)


@compiled
def kind_of(work: Work, service: int) -> int:
    """The Affinity that a service has."""
    kind: int = work.snapshot.affinities[service, 0, AffinityColumn.KIND]
    return kind


@compiled
def client_flow(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity of a service has it."""
    return _flow(work, service, ends, work.snapshot.affinities[service, 0])


@compiled
def known_flow(work: Work, service: int, own: Flow, ends: Ends, step: int) -> Flow:
    """The flow that a packet goes on with, if only by an affinity that its service had before; else `own`.

    A connection must find at each of its packets what it found at its first. Where clients were flows, all
    that a client with such a flow begins goes with it, but for a connection that is a flow of its own. Where
    connections were flows, each of those goes on with it, and nothing else does.
    """
    before = work.snapshot.services[service, ServiceColumn.BEFORE]
    if before == 0:
        return own
    by_connection = kind_of(work, service) == Affinity.CONNECTION
    if by_connection and find(work.table, own)[0] >= 0:
        return own
    for at in range(1, 1 + before):
        affinity = work.snapshot.affinities[service, at]
        if by_connection and step == Step.BEGINS and affinity[AffinityColumn.KIND] != Affinity.CONNECTION:
            return own
        older = _flow(work, service, ends, affinity)
        if find(work.table, older)[0] >= 0:
            return older
    return own


@compiled
def is_connection(flow: Flow) -> bool:
    """Whether a flow is one connection."""
    return bool(flow.scope & _PORTS)


class FlowPorts(NamedTuple):
    """What a flow that is one connection is made of beside its client's address."""

    protocol: int  #: its IANA number
    client_port: int  #: 0 where the protocol has none; an echo's identifier stands for both ports
    service_port: int


def ports_in(scope: int) -> FlowPorts | None:
    """Protocol and ports of a flow with this scope; None: it is a client, with all that it says."""
    if not scope & int(_PORTS):
        return None
    return FlowPorts(scope >> 16 & 0xFF, scope >> 24 & 0xFFFF, scope >> 40 & 0xFFFF)


def numbers_of(scopes: Words) -> Longs:
    """The numbers of the affinities that flows with these scopes, uint64[n], are of."""
    return (scopes >> np.uint64(NUMBER_SHIFT)).astype(np.int64)


def owners_of(scopes: Words) -> set[tuple[int, int]]:
    """The service ids and numbers of affinities that flows with these scopes, uint64[n], are of."""
    owners = np.unique(scopes & ~_PORTS)
    return set(zip((owners & np.uint64(_SERVICE)).tolist(), numbers_of(owners).tolist(), strict=True))


@compiled
def _flow(work: Work, service: int, ends: Ends, affinity: Longs) -> Flow:
    """The flow by an affinity, int64[len(AffinityColumn)]."""
    scope = np.uint64(service | affinity[AffinityColumn.NUMBER] << NUMBER_SHIFT)
    ports = np.uint64(ends.protocol << 16 | ends.client_port << 24 | ends.service_port << 40)
    scope |= ports & np.uint64(affinity[AffinityColumn.PORTS])
    client = within(affinity, ends.client)
    return flow_of(work.table.secret, scope, client)


@compiled
def within(affinity: Longs, client: Address128) -> Address128:
    """The bits of a client's address that count by an affinity, int64[len(AffinityColumn)]."""
    high, low = affinity[AffinityColumn.NETWORK_HIGH], affinity[AffinityColumn.NETWORK_LOW]
    return Address128(client.high & np.uint64(high), client.low & np.uint64(low))
