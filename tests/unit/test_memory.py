"""Shared memory as a parent and a forked child see it."""

import os

import numpy as np
import pytest

from loaded_mp.memory.counters import BackendCounter, columns
from loaded_mp.memory.segment import Field, LayoutError, Segment, new_segment, size_of
from loaded_mp.memory.shared import new_shared_memory

FIELDS = [
    Field("bytes", np.uint8, (3,)),
    Field("words", np.uint64, (4, 2)),
    Field("none", np.int32, (0,)),
    Field("last", np.int32, (1,)),
]


def test_fields_lie_apart_and_hold_zeros() -> None:
    arrays = new_segment(FIELDS).arrays
    assert size_of(FIELDS) == 64 + 64 + 64 + 0 + 64
    assert {name: a.shape for name, a in arrays.items()} == {f.name: f.shape for f in FIELDS}
    for name in ("bytes", "words", "last"):
        assert not arrays[name].any()
        assert arrays[name].ctypes.data % 64 == 0
        arrays[name][:] = 255
        assert sum(int(a.sum() != 0) for a in arrays.values()) == 1
        arrays[name][:] = 0


def test_a_child_writes_what_its_parent_reads() -> None:
    arrays = new_segment(FIELDS).arrays
    child = os.fork()
    if child == 0:
        arrays["words"][3, 1] = 42
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert arrays["words"][3, 1] == 42


def test_another_process_finds_the_memory_by_its_descriptor() -> None:
    segment = new_segment(FIELDS)
    segment.arrays["words"][3, 1] = 42
    again = Segment(os.dup(segment.descriptor), FIELDS)
    assert again.arrays["words"][3, 1] == 42
    again.arrays["last"][0] = 7
    assert segment.arrays["last"][0] == 7


@pytest.mark.parametrize(
    "other",
    [
        FIELDS[:-1],
        [FIELDS[0]._replace(name="octets"), *FIELDS[1:]],
        [FIELDS[0]._replace(dtype=np.int8), *FIELDS[1:]],
        [FIELDS[0], FIELDS[1]._replace(shape=(2, 4)), *FIELDS[2:]],
        [FIELDS[0], FIELDS[1]._replace(columns=("one", "two")), *FIELDS[2:]],
    ],
)
def test_memory_of_another_layout_is_refused(other: list[Field]) -> None:
    segment = new_segment(FIELDS)
    with pytest.raises(LayoutError, match="the shared memory has another"):
        Segment(segment.descriptor, other)


def test_no_two_workers_write_into_one_cache_line() -> None:
    memory = new_shared_memory(1_024, 3)
    for rows in (memory.stamps, memory.workers, memory.flow_table, memory.backends, memory.reasons):
        assert rows[0].ctypes.data % 64 == 0
        assert rows[0].nbytes % 64 == 0
    assert memory.active[0].nbytes % 64 == 0
    assert columns(BackendCounter) >= len(BackendCounter)
