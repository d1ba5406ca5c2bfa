"""Destinations that keep their backends, for lblc and lblcr.

A backend that a destination has is an entry in the flow table: its scope names the service and a place, its
address is the destination, its value the backend with HOME added, which keeps it out of the counts of open
flows. So it is found, changed, forgotten and given way as a flow is. Its first place is renewed whenever the
destination is asked for; the others, where lblcr adds backends, when one is added.
"""

import numpy as np

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.affinity import NUMBER_SHIFT
from loaded_mp.datapath.open_flows import count_evicted, is_full, open_flows
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.flows.table import FlowTable, find, insert, replace, touch, value_of
from loaded_mp.memory.snapshot import HOME, MAX_BACKENDS, Pick, ServiceColumn
from loaded_mp.packet.address import Address128

#: Backends that a destination has at the most.
PLACES = 16
#: What is not renewed is forgotten, as by default in LVS (net/netfilter/ipvs/ip_vs_lblcr.c).
KEPT_S = 86_400
#: What tells a place from the number of a client's affinity.
_PLACE = 0x80


@compiled
def remembered(work: Work, service: int, vip: Address128) -> int:
    """The backend that a destination has, the one with the fewest flows for its weight; -1 if none can do it.

    One that has more flows than its weight can not while another one has fewer than half of its own.
    """
    best, best_flows, best_weight = -1, 0, 1
    for place in range(_places(work, service)):
        entry, word = find(work.table, _home(work, service, vip, place))
        backend = value_of(word) & ~HOME
        if entry < 0 or not _takes_flows(work, service, backend):
            continue  # others may stand behind one that went
        flows, weight = open_flows(work, backend), signed(work.snapshot.backend_weights[backend])
        if best < 0 or flows * best_weight <= best_flows * weight:  # of equals the one that came last
            best, best_flows, best_weight = backend, flows, weight
    if best >= 0 and best_flows > best_weight and _another_is_idle(work, service):
        return -1
    return best


@compiled
def remember(work: Work, service: int, vip: Address128, backend: int) -> None:
    """Let a destination have a backend: in place of the one that it had, or with lblcr beside those."""
    places, free = _places(work, service), -1
    for place in range(places):
        entry, word = find(work.table, _home(work, service, vip, place))
        held = value_of(word) & ~HOME if entry >= 0 else -1
        if entry >= 0 and place == 0:
            touch(work.table, entry, word, work.now_s, work.now_s + KEPT_S)
        if held == backend:
            return
        if free < 0 and (places == 1 or not _is_of(work, service, held)):
            free = place
    if free < 0:
        return
    flow = _home(work, service, vip, free)
    entry, word = find(work.table, flow)
    if entry >= 0:
        # Who loses a race here gives way to another worker's choice, which is as good.
        replace(work.table, entry, word, backend | HOME)
    else:
        _, evicted = insert(work.table, flow, backend | HOME, work.now_s + KEPT_S)
        count_evicted(work, evicted)
    for place in range(1, places):
        entry, word = find(work.table, _home(work, service, vip, place))
        if entry >= 0:
            touch(work.table, entry, word, work.now_s, work.now_s + KEPT_S)


@compiled
def copy_homes(work: Work, service: int, vips: Words, table: FlowTable) -> None:
    """Enter what destinations have into another table of the same secret; `vips`: uint64[n, 2]."""
    for i in range(len(vips)):
        for place in range(PLACES):
            flow = _home(work, service, Address128(vips[i, 0], vips[i, 1]), place)
            entry, word = find(work.table, flow)
            if entry >= 0:
                insert(table, flow, value_of(word), work.now_s + KEPT_S)


@compiled
def _places(work: Work, service: int) -> int:
    """How many backends a destination may have."""
    return PLACES if work.snapshot.services[service][ServiceColumn.PICK] == Pick.REPLICATED else 1


@compiled
def _home(work: Work, service: int, vip: Address128, place: int) -> Flow:
    return flow_of(
        work.table.secret, np.uint64(_PLACE | place) << np.uint64(NUMBER_SHIFT) | np.uint64(service), vip
    )


@compiled
def _is_of(work: Work, service: int, backend: int) -> bool:
    return 0 <= backend < MAX_BACKENDS and work.snapshot.backend_services[backend] == service


@compiled
def _takes_flows(work: Work, service: int, backend: int) -> bool:
    """Whether a backend that was remembered may get a flow; it may have been taken away."""
    if not _is_of(work, service, backend) or work.snapshot.backend_weights[backend] == 0:
        return False
    return not (work.snapshot.services[service][ServiceColumn.LIMITED] and is_full(work, backend))


@compiled
def _another_is_idle(work: Work, service: int) -> bool:
    """Whether some backend has fewer flows than half its weight."""
    row = work.snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    for slot in range(first, first + row[ServiceColumn.SLOTS]):
        backend = signed(work.snapshot.slots[slot])
        if 2 * open_flows(work, backend) < work.snapshot.backend_weights[backend]:
            return True
    return False
