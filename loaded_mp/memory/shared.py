"""Everything that workers and supervisor share, in one segment."""

import secrets
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.flows.table import WAYS, FlowTable, buckets_for
from loaded_mp.memory.segment import Field, new_segment, size_of
from loaded_mp.memory.snapshot import (
    MAX_BACKENDS,
    MAX_SERVICES,
    Snapshot,
    snapshot_fields,
    snapshot_from,
)
from loaded_mp.packet.reasons import Reason

# Columns of `SharedMemory.workers`: one cache line for each worker.
(HEARTBEAT_MS, GENERATION, LAST_READ_ID, PACKETS, BATCHES, OVERRUNS, EVICTIONS, UNSENT) = range(8)
_WORKER_COLUMNS = 8
# Columns of `SharedMemory.traffic`.
TO_BACKEND_PACKETS, TO_BACKEND_BYTES, TO_CLIENT_PACKETS, TO_CLIENT_BYTES, NEW_FLOWS = range(5)
_TRAFFIC_COLUMNS = 5
#: Reasons, rounded up so that no two workers write into one cache line.
_REASON_COLUMNS = -(-len(Reason) // 8) * 8

Counters = npt.NDArray[np.uint64]


class SharedMemory(NamedTuple):
    """Counters are uint64, rise only, and each row is written by one worker."""

    table: FlowTable
    snapshots: tuple[Snapshot, Snapshot]
    generation: Counters  #: [1], written by the supervisor; snapshots[generation & 1] holds
    cursors: Counters  #: [MAX_SERVICES], the next slot of each service, shared by all workers
    workers: Counters  #: [workers, 8], see HEARTBEAT_MS...
    traffic: Counters  #: [workers, MAX_BACKENDS, 5], see TO_BACKEND_PACKETS...
    reasons: Counters  #: [workers, n >= len(Reason)], packets by Reason


def _fields(flows: int, workers: int) -> list[Field]:
    entries = buckets_for(flows) * WAYS
    return [
        Field("words", np.uint64, (entries,)),
        Field("deadlines_s", np.uint32, (entries,)),
        Field("addresses", np.uint64, (entries, 2)),
        Field("secret", np.uint64, (2,)),
        Field("generation", np.uint64, (1,)),
        Field("cursors", np.uint64, (MAX_SERVICES,)),
        Field("workers", np.uint64, (workers, _WORKER_COLUMNS)),
        Field("traffic", np.uint64, (workers, MAX_BACKENDS, _TRAFFIC_COLUMNS)),
        Field("reasons", np.uint64, (workers, _REASON_COLUMNS)),
        *snapshot_fields("even_"),
        *snapshot_fields("odd_"),
    ]


def memory_bytes(flows: int, workers: int) -> int:
    """What `new_shared_memory` takes at the most, in bytes."""
    return size_of(_fields(flows, workers))


def new_shared_memory(flows: int, workers: int) -> SharedMemory:
    """Fresh shared memory with room for `flows` flows. Raises OSError (ENOMEM)."""
    arrays = new_segment(_fields(flows, workers))
    arrays["secret"][:] = (secrets.randbits(64), secrets.randbits(64))
    table = FlowTable(arrays["words"], arrays["deadlines_s"], arrays["addresses"], arrays["secret"])
    return SharedMemory(
        table,
        (snapshot_from(arrays, "even_"), snapshot_from(arrays, "odd_")),
        arrays["generation"],
        arrays["cursors"],
        arrays["workers"],
        arrays["traffic"],
        arrays["reasons"],
    )
