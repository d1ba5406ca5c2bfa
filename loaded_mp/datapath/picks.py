"""Which backend a new flow gets: one function for each Pick."""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import Words, add
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.siphash import siphash
from loaded_mp.memory.snapshot import Pick, ServiceColumn
from loaded_mp.packet.address import Address128

Longs = npt.NDArray[np.int64]

#: Known to everybody: a client's slot is the same after a restart and on other machines.
_PUBLIC_SECRET = np.zeros(2, np.uint64)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@compiled
def pick(work: Work, service: int, flow: Flow, vip: Address128) -> int:
    """The backend for a new flow of a service by a VIP; -1 if it has none."""
    row = work.snapshot.services[service]
    if row[ServiceColumn.SLOTS] == 0:
        return -1
    if row[ServiceColumn.PICK] == Pick.LEAST:
        return _least(work, service)
    if row[ServiceColumn.PICK] == Pick.IDLE:
        idle = _with_less_than(work, service, False)
        return idle if idle >= 0 else _least(work, service)
    if row[ServiceColumn.PICK] == Pick.ROOM:
        return _with_less_than(work, service, True)
    if row[ServiceColumn.PICK] == Pick.HASH:
        return _slot(work, service, siphash(_PUBLIC_SECRET, _ZERO, flow.address.high, flow.address.low))
    if row[ServiceColumn.PICK] == Pick.DESTINATION:
        return _slot(work, service, siphash(_PUBLIC_SECRET, _ZERO, vip.high, vip.low))
    turn = add(work.cursors, service, np.uint64(1))
    if row[ServiceColumn.PICK] == Pick.TWO:
        first = _slot(work, service, siphash(work.table.secret, turn, _ZERO, _ZERO))
        second = _slot(work, service, siphash(work.table.secret, turn, _ZERO, _ONE))
        return second if _is_less(work, service, second, first) else first
    return _slot(work, service, turn)


@compiled
def pick_all(work: Work, service: int, clients: Words, vips: Words, picked: Longs) -> None:
    """Pick a backend for one new flow after the other; each is open from then on in the work's row.

    `clients` and `vips` are uint64[n, 2], addresses as Address128; `picked`: int64[n], backend ids, -1: none.
    """
    row = work.snapshot.services[service]
    high, low = np.uint64(row[ServiceColumn.NETWORK_HIGH]), np.uint64(row[ServiceColumn.NETWORK_LOW])
    for i in range(picked.size):
        client = Address128(clients[i, 0] & high, clients[i, 1] & low)
        backend = pick(work, service, Flow(_ZERO, _ZERO, client), Address128(vips[i, 0], vips[i, 1]))
        picked[i] = backend
        if backend >= 0:
            work.active[work.worker, backend] += 1


@compiled
def _slot(work: Work, service: int, turn: np.uint64) -> int:
    row = work.snapshot.services[service]
    slot = signed(turn % np.uint64(row[ServiceColumn.SLOTS]))
    return signed(work.snapshot.slots[row[ServiceColumn.SLOTS_AT] + slot])


@compiled
def _least(work: Work, service: int) -> int:
    row = work.snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    best = signed(work.snapshot.slots[first])
    for slot in range(first + 1, first + row[ServiceColumn.SLOTS]):
        backend = signed(work.snapshot.slots[slot])
        if _is_less(work, service, backend, best):
            best = backend
    return best


@compiled
def _is_less(work: Work, service: int, one: int, other: int) -> bool:
    """Whether a backend has fewer open flows for its weight than another."""
    row = work.snapshot.services[service]
    one_load = open_flows(work, one) + row[ServiceColumn.PLUS]
    other_load = open_flows(work, other) + row[ServiceColumn.PLUS]
    if row[ServiceColumn.WEIGHTED]:
        one_load *= work.snapshot.backend_weights[other]
        other_load *= work.snapshot.backend_weights[one]
    return bool(one_load < other_load)


@compiled
def _with_less_than(work: Work, service: int, weight: bool) -> int:
    """The first backend with fewer open flows than its weight, or than one; -1 if there is none."""
    row = work.snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    for slot in range(first, first + row[ServiceColumn.SLOTS]):
        backend = signed(work.snapshot.slots[slot])
        if open_flows(work, backend) < (work.snapshot.backend_weights[backend] if weight else 1):
            return backend
    return -1


@compiled
def open_flows(work: Work, backend: int) -> int:
    """How many flows a backend has, over all workers."""
    flows = signed(work.active[-1, backend])
    for worker in range(work.rows):
        flows += work.active[worker, backend]
    return flows
