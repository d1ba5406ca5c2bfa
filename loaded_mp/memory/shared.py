"""Everything that workers and supervisor share, in one segment."""

import os
import secrets
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.flows.table import WAYS, FlowTable, buckets_for
from loaded_mp.memory.arena import populate
from loaded_mp.memory.counters import (
    BackendCounter,
    FastPathCounter,
    FlowTableCounter,
    WorkerCounter,
    columns,
)
from loaded_mp.memory.segment import Field, Segment, new_segment, size_of
from loaded_mp.memory.snapshot import (
    MAX_BACKENDS,
    MAX_SERVICES,
    MAX_WORKERS,
    Snapshot,
    snapshot_fields,
    snapshot_from,
)
from loaded_mp.packet.reasons import Reason

Counters = npt.NDArray[np.uint64]
#: Which backend ids: one, some or all of them.
Rows = int | npt.NDArray[np.int64] | list[int] | slice

#: Bytes of what the supervisor writes down for the one after it, at the most.
MAX_NOTES_BYTES = 4 << 20
#: Events that are kept, and bytes of each at the most.
MAX_EVENTS, EVENT_BYTES = 1_000, 1_024
#: Rows of what the fast path counts; those of cores that are not there take no pages.
MAX_CORES = 256
#: Connections that are known not to come by a VIP; a power of two.
MAX_DIRECT = 1 << 17
#: Those of this machine.
CORES = min(MAX_CORES, os.sysconf("SC_NPROCESSORS_CONF"))


class Stamp(IntEnum):
    """Columns of `SharedMemory.stamps`: where a worker is."""

    HEARTBEAT_MS = 0  #: CLOCK_MONOTONIC
    GENERATION = 1  #: of the snapshot that it reads
    LAST_READ_ID = 2  #: the last packet that it read


class KernelSetting(IntEnum):
    """Columns of `SharedMemory.kernel_settings`."""

    ENTRIES = 0  #: of the flow table
    #: Bytes of the longest packet, but for TCP, that the way to backends takes as it comes from clients.
    LONGEST = 1
    #: Interfaces by their index; 0: one of them is not there, or its packets are not seen.
    PUBLIC = 2
    PRIVATE = 3


class SharedMemory(NamedTuple):
    """Each row of `stamps` and of what is counted is written by one worker and has cache lines of its own."""

    table: FlowTable
    snapshots: tuple[Snapshot, Snapshot]
    generation: Counters  #: uint64[1], written by the supervisor; snapshots[generation & 1] holds
    cursors: Counters  #: uint64[MAX_SERVICES], the next slot of each service, all workers'
    #: int64[1], the most workers that there were at once: only so many rows are in use.
    rows: npt.NDArray[np.int64]
    stamps: Counters  #: uint64[MAX_WORKERS, n >= len(Stamp)]
    workers: Counters  #: uint64[MAX_WORKERS, n >= len(WorkerCounter)]
    flow_table: Counters  #: uint64[MAX_WORKERS, n >= len(FlowTableCounter)]
    backends: Counters  #: uint64[MAX_WORKERS, MAX_BACKENDS, n >= len(BackendCounter)]
    reasons: Counters  #: uint64[MAX_WORKERS, n >= len(Reason)], packets
    #: int64[MAX_WORKERS + 1, MAX_BACKENDS], whose sum is open flows; the last row is the sweep's.
    active: npt.NDArray[np.int64]
    #: uint8[MAX_BACKENDS], 1: it has had all flows that it may have, and gets none until it has few again.
    full: npt.NDArray[np.uint8]
    kernel_settings: npt.NDArray[np.int64]  #: [len(KernelSetting)], written by the supervisor
    kernel_counted: Counters  #: uint64[MAX_CORES, n >= len(FastPathCounter)], each row written on one core
    kernel_backends: Counters  #: uint64[MAX_CORES, MAX_BACKENDS, n >= len(BackendCounter)]
    #: uint64[MAX_DIRECT], connections that do not come by a VIP, see `fastpath/direct.py`.
    kernel_direct: Counters
    notes: npt.NDArray[np.uint8]  #: [2, MAX_NOTES_BYTES], the supervisor's, see write_notes
    notes_bytes: Counters  #: uint64[2], how many of each hold
    notes_turn: Counters  #: uint64[1]; notes[turn & 1] hold
    events: npt.NDArray[np.uint8]  #: [MAX_EVENTS, EVENT_BYTES], the supervisor's, see write_event
    events_told: Counters  #: uint64[1], how many there were so far


def new_shared_memory(flows: int, workers: int) -> SharedMemory:
    """Fresh shared memory with room for `flows` flows, for `workers` at first. Raises OSError (ENOMEM).

    It lasts as long as this process and its children look at it.
    """
    memory, descriptor = fresh_memory(flows, workers)
    os.close(descriptor)
    return memory


def fresh_memory(flows: int, workers: int, in_kernel: bool = False) -> tuple[SharedMemory, int]:
    """As `new_shared_memory`, and the descriptor by which other processes may map it.

    `in_kernel`: the kernel's programs can see it too. Raises OSError also where that cannot be.
    """
    segment = new_segment(shared_fields(flows, MAX_WORKERS), in_kernel)
    memory = _in(segment)
    memory.kernel_settings[KernelSetting.ENTRIES] = memory.table.words.size
    if in_kernel:
        seen = (memory.table.words, memory.kernel_counted, memory.kernel_direct)
        populate(*seen, *memory.kernel_backends[:CORES])
    memory.rows[0] = workers
    memory.table.secret[:] = (secrets.randbits(64), secrets.randbits(64))
    return memory, segment.descriptor


def shared_memory_of(descriptor: int, flows: int) -> SharedMemory:
    """The shared memory that another process made. Raises LayoutError if it is another kind, or OSError."""
    return _in(Segment(descriptor, shared_fields(flows, MAX_WORKERS)))


def open_flows(memory: SharedMemory) -> npt.NDArray[np.int64]:
    """How many flows each backend has, int64[MAX_BACKENDS] by backend id."""
    counted: npt.NDArray[np.int64] = memory.active[: memory.rows[0]].sum(axis=0) + memory.active[-1]
    return counted


def counted_of(memory: SharedMemory, backends: Rows) -> Counters:
    """What workers and the fast path counted of backends, by BackendCounter in the last axis."""
    counted: Counters = memory.backends[: memory.rows[0], backends].sum(axis=0)
    counted += memory.kernel_backends[:CORES, backends].sum(axis=0)
    return counted


def write_notes(memory: SharedMemory, notes: bytes) -> None:
    """Leave notes for the next supervisor. Whoever reads while this happens finds the notes before."""
    idle = (int(memory.notes_turn[0]) + 1) & 1
    memory.notes[idle, : len(notes)] = np.frombuffer(notes, np.uint8)
    memory.notes_bytes[idle] = len(notes)
    memory.notes_turn[0] += np.uint64(1)


def read_notes(memory: SharedMemory) -> bytes:
    """The notes that the last supervisor left; empty if there are none."""
    turn = int(memory.notes_turn[0]) & 1
    return memory.notes[turn, : int(memory.notes_bytes[turn])].tobytes()


def write_event(memory: SharedMemory, text: bytes) -> None:
    """Keep an event, of EVENT_BYTES at most and without zeros, in the place of the oldest."""
    row = memory.events[int(memory.events_told[0]) % MAX_EVENTS]
    row[: len(text)] = np.frombuffer(text, np.uint8)
    row[len(text) :] = 0
    memory.events_told[0] += np.uint64(1)


def read_events(memory: SharedMemory) -> list[bytes]:
    """The events that are kept, the oldest first. One may be cut if its writer was killed."""
    told = int(memory.events_told[0])
    rows = (memory.events[number % MAX_EVENTS] for number in range(max(0, told - MAX_EVENTS), told))
    return [row.tobytes().rstrip(b"\0") for row in rows]


def memory_bytes(flows: int, workers: int) -> int:
    """What `new_shared_memory` takes at the most while there are so many workers, in bytes."""
    cores_away = (MAX_CORES - CORES) * MAX_BACKENDS * columns(BackendCounter) * 8
    return size_of(shared_fields(flows, workers)) - cores_away


def _in(segment: Segment) -> SharedMemory:
    """The shared memory that a segment holds."""
    arrays = segment.arrays
    return SharedMemory(
        FlowTable(arrays["words"], arrays["deadlines_s"], arrays["keys"], arrays["secret"]),
        (snapshot_from(arrays, "even_"), snapshot_from(arrays, "odd_")),
        arrays["generation"],
        arrays["cursors"],
        arrays["rows"],
        arrays["stamps"],
        arrays["workers"],
        arrays["flow_table"],
        arrays["backends"],
        arrays["reasons"],
        arrays["active"],
        arrays["full"],
        arrays["kernel_settings"],
        arrays["kernel_counted"],
        arrays["kernel_backends"],
        arrays["kernel_direct"],
        arrays["notes"],
        arrays["notes_bytes"],
        arrays["notes_turn"],
        arrays["events"],
        arrays["events_told"],
    )


def shared_fields(flows: int, workers: int) -> list[Field]:
    """All fields; only the last ones, the table's, are of a size that depends on `flows`."""
    entries = buckets_for(flows) * WAYS

    def counted(name: str, counters: type[IntEnum], *rows: int) -> Field:
        return Field(name, np.uint64, (*rows, columns(counters)), tuple(counters.__members__))

    return [
        Field("secret", np.uint64, (2,)),
        Field("generation", np.uint64, (1,)),
        Field("cursors", np.uint64, (MAX_SERVICES,)),
        Field("rows", np.int64, (1,)),
        counted("stamps", Stamp, workers),
        counted("workers", WorkerCounter, workers),
        counted("flow_table", FlowTableCounter, workers),
        counted("backends", BackendCounter, workers, MAX_BACKENDS),
        counted("reasons", Reason, workers),
        Field("active", np.int64, (workers + 1, MAX_BACKENDS)),
        Field("full", np.uint8, (MAX_BACKENDS,)),
        Field("notes", np.uint8, (2, MAX_NOTES_BYTES)),
        Field("notes_bytes", np.uint64, (2,)),
        Field("notes_turn", np.uint64, (1,)),
        Field("events", np.uint8, (MAX_EVENTS, EVENT_BYTES)),
        Field("events_told", np.uint64, (1,)),
        *snapshot_fields("even_"),
        *snapshot_fields("odd_"),
        Field("kernel_settings", np.int64, (len(KernelSetting),), tuple(KernelSetting.__members__)),
        counted("kernel_counted", FastPathCounter, MAX_CORES),
        counted("kernel_backends", BackendCounter, MAX_CORES, MAX_BACKENDS),
        Field("kernel_direct", np.uint64, (MAX_DIRECT,)),
        # The table comes last, so that all else has the same place whatever its size.
        Field("words", np.uint64, (entries,)),
        Field("deadlines_s", np.uint32, (entries,)),
        Field("keys", np.uint64, (entries, 3)),
    ]
