"""Which backend a new flow gets: one function for each Pick."""

import numpy as np

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import add
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.siphash import siphash
from loaded_mp.memory.snapshot import Pick, ServiceColumn

#: Known to everybody: a client's slot is the same after a restart and on other machines.
_PUBLIC_SECRET = np.zeros(2, np.uint64)
_ZERO = np.uint64(0)


@compiled
def pick(work: Work, service: int, flow: Flow) -> int:
    """The backend for a new flow of a service; -1 if it has none."""
    row = work.snapshot.services[service]
    if row[ServiceColumn.SLOTS] == 0:
        return -1
    if row[ServiceColumn.PICK] == Pick.LEAST:
        return _least(work, service)
    if row[ServiceColumn.PICK] == Pick.HASH:
        turn = siphash(_PUBLIC_SECRET, _ZERO, flow.address.high, flow.address.low)
    else:
        turn = add(work.cursors, service, np.uint64(1))
    slot = signed(turn % np.uint64(row[ServiceColumn.SLOTS]))
    return signed(work.snapshot.slots[row[ServiceColumn.SLOTS_AT] + slot])


@compiled
def _least(work: Work, service: int) -> int:
    row = work.snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    best, best_load, best_weight = -1, 0, 1
    for slot in range(first, first + row[ServiceColumn.SLOTS]):
        backend = signed(work.snapshot.slots[slot])
        load = row[ServiceColumn.PLUS] + work.active[-1, backend]
        for worker in range(work.rows):
            load += work.active[worker, backend]
        weight = work.snapshot.backend_weights[backend] if row[ServiceColumn.WEIGHTED] else 1
        if best < 0 or load * best_weight < best_load * weight:
            best, best_load, best_weight = backend, load, weight
    return best
