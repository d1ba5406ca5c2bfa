"""Which backend a new flow gets: one function for each Pick.

A backend that is full is left out. Where one is taken by its slot (in turn, by hash, of two), the next turn
or another hash says who gets the flow in its place, so that a client's substitute is the same while the same
backends are full. LVS's `sh` and `mh` drop such a client unless they have their flag `fallback`, which
does this, too. After some tries it is who has the fewest flows for its weight.
"""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.affinity import within
from loaded_mp.datapath.locality import remember, remembered
from loaded_mp.datapath.open_flows import is_full, open_flows
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import Words, add
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.siphash import siphash
from loaded_mp.memory.snapshot import Pick, ServiceColumn
from loaded_mp.packet.address import Address128

Longs = npt.NDArray[np.int64]

#: In place of a backend id.
NO_BACKEND, ALL_FULL = -1, -3
#: How many slots are looked at for a backend that is not full.
_TRIES = 16
#: Known to everybody: a client's slot is the same after a restart and on other machines.
_PUBLIC_SECRET = np.zeros(2, np.uint64)
_HALF, _LOWER_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@compiled
def pick(work: Work, service: int, flow: Flow, vip: Address128) -> int:
    """The backend for a new flow of a service by a VIP; NO_BACKEND if it has none, ALL_FULL if none takes it.

    But for a turn of the service nothing is changed by this.
    """
    row = work.snapshot.services[service]
    first, slots, way = row[ServiceColumn.SLOTS_AT], row[ServiceColumn.SLOTS], row[ServiceColumn.PICK]
    if slots == 0:
        return NO_BACKEND
    if way == Pick.LEAST:
        return _least(work, service, first, slots)
    if way == Pick.IDLE:
        idle = _first(work, service, way)
        return idle if idle >= 0 else _least(work, service, first, slots)
    if way in (Pick.FIRST, Pick.ROOM):
        return _first(work, service, way)
    if way in (Pick.LOCAL, Pick.REPLICATED):
        backend = remembered(work, service, vip)
        return backend if backend >= 0 else _least(work, service, first, slots)
    if not row[ServiceColumn.LIMITED]:
        return _by_slot(work, service, flow, vip, _ZERO)
    for attempt in range(_TRIES):
        backend = _by_slot(work, service, flow, vip, np.uint64(attempt))
        if not is_full(work, backend):
            return backend
    return _least(work, service, first + slots, row[ServiceColumn.LIMITED])


@compiled
def pick_for_good(work: Work, service: int, flow: Flow, vip: Address128) -> int:
    """As `pick`, for a flow that is there: what the scheduler has to remember is written down."""
    backend = pick(work, service, flow, vip)
    way = work.snapshot.services[service][ServiceColumn.PICK]
    if backend >= 0 and way in (Pick.LOCAL, Pick.REPLICATED):
        remember(work, service, vip, backend)
    return backend


@compiled
def _by_slot(work: Work, service: int, flow: Flow, vip: Address128, attempt: np.uint64) -> int:
    """The backend of a slot, of another one at each attempt."""
    way = work.snapshot.services[service][ServiceColumn.PICK]
    if way == Pick.HASH:
        return _slot(work, service, siphash(_PUBLIC_SECRET, attempt, flow.address.high, flow.address.low))
    if way == Pick.DESTINATION:
        return _slot(work, service, siphash(_PUBLIC_SECRET, attempt, vip.high, vip.low))
    turn = add(work.cursors, service, _ONE)
    if way == Pick.TWO:
        drawn = siphash(work.table.secret, turn, _ZERO, _ZERO)
        one = _slot(work, service, drawn >> _HALF)
        other = _slot(work, service, drawn & _LOWER_HALF)
        one_load = _load(work, service, one) * _weight(work, service, other)
        other_load = _load(work, service, other) * _weight(work, service, one)
        return _either(other_load < one_load, other, one)
    return _slot(work, service, turn)


@compiled
def pick_all(work: Work, service: int, clients: Words, vips: Words, picked: Longs) -> None:
    """Pick a backend for one new flow after the other; each is open from then on in the work's row.

    `clients` and `vips` are uint64[n, 2], addresses as Address128; `picked`: int64[n], backend ids, -1: none.
    """
    for i in range(picked.size):
        client = within(work.snapshot.affinities[service, 0], Address128(clients[i, 0], clients[i, 1]))
        flow, vip = Flow(_ZERO, _ZERO, client), Address128(vips[i, 0], vips[i, 1])
        backend = pick_for_good(work, service, flow, vip)
        picked[i] = backend
        if backend >= 0:
            work.active[work.worker, backend] += 1


@compiled
def _slot(work: Work, service: int, turn: np.uint64) -> int:
    row = work.snapshot.services[service]
    slot = signed(turn % np.uint64(row[ServiceColumn.SLOTS]))
    return signed(work.snapshot.slots[row[ServiceColumn.SLOTS_AT] + slot])


@compiled
def _least(work: Work, service: int, first: int, slots: int) -> int:
    """Who has the fewest flows for its weight among the backends of some slots; ALL_FULL if all are full."""
    limited = work.snapshot.services[service][ServiceColumn.LIMITED]
    best, best_load, best_weight = ALL_FULL, 1, 0  # more than any
    for slot in range(first, first + slots):
        backend = signed(work.snapshot.slots[slot])
        if limited and is_full(work, backend):
            continue
        load, weight = _load(work, service, backend), _weight(work, service, backend)
        fewer = load * best_weight < best_load * weight
        best = _either(fewer, backend, best)
        best_load, best_weight = _either(fewer, load, best_load), _either(fewer, weight, best_weight)
    return best


@compiled
def _either(first: bool, one: int, other: int) -> int:
    """One of two numbers, without a branch: the processor would guess wrong at every other one."""
    return other ^ ((one ^ other) & -int(first))


@compiled
def _load(work: Work, service: int, backend: int) -> int:
    plus: int = work.snapshot.services[service][ServiceColumn.PLUS]
    return open_flows(work, backend) + plus


@compiled
def _weight(work: Work, service: int, backend: int) -> int:
    """The weight by which a load is judged."""
    if work.snapshot.services[service][ServiceColumn.WEIGHTED]:
        return signed(work.snapshot.backend_weights[backend])
    return 1


@compiled
def _first(work: Work, service: int, way: int) -> int:
    """The first backend that Pick.FIRST, IDLE or ROOM may take; ALL_FULL if there is none."""
    row = work.snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    for slot in range(first, first + row[ServiceColumn.SLOTS]):
        backend = signed(work.snapshot.slots[slot])
        if way == Pick.IDLE and open_flows(work, backend) > 0:
            continue
        if way == Pick.ROOM and open_flows(work, backend) > work.snapshot.backend_weights[backend]:
            continue
        if not (row[ServiceColumn.LIMITED] and is_full(work, backend)):
            return backend
    return ALL_FULL
