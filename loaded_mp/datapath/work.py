"""What one worker works on."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled
from loaded_mp.flows.atomics import Words, load
from loaded_mp.flows.table import FlowTable
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.memory.snapshot import Snapshot


class Work(NamedTuple):
    """What a worker reads, and the rows that it alone counts in."""

    snapshot: Snapshot
    table: FlowTable
    cursors: Words  #: uint64[MAX_SERVICES], the next slot of each service, all workers'
    active: npt.NDArray[np.int64]  #: [MAX_WORKERS + 1, MAX_BACKENDS], see SharedMemory
    full: npt.NDArray[np.uint8]  #: [MAX_BACKENDS], see SharedMemory
    rows: int  #: of `active` that workers use
    worker: int  #: the row of `active`
    counted: Words  #: uint64[n], by WorkerCounter
    table_counted: Words  #: uint64[n], by FlowTableCounter
    backends_counted: Words  #: uint64[MAX_BACKENDS, n], by BackendCounter
    reasons: Words  #: uint64[n], packets by Reason
    now_s: int  #: CLOCK_MONOTONIC


@compiled
def work_of(memory: SharedMemory, worker: int, now_s: int) -> Work:
    """The work of a worker with the snapshot that holds now."""
    generation = load(memory.generation, 0)
    return Work(
        memory.snapshots[generation & np.uint64(1)],
        memory.table,
        memory.cursors,
        memory.active,
        memory.full,
        memory.rows[0],
        worker,
        memory.workers[worker],
        memory.flow_table[worker],
        memory.backends[worker],
        memory.reasons[worker],
        now_s,
    )
