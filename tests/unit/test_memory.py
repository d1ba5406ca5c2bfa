"""Shared memory as a parent and a forked child see it."""

import os

import numpy as np

from loaded_mp.memory.segment import Field, new_segment, size_of

FIELDS = [
    Field("bytes", np.uint8, (3,)),
    Field("words", np.uint64, (4, 2)),
    Field("none", np.int32, (0,)),
    Field("last", np.int32, (1,)),
]


def test_fields_lie_apart_and_hold_zeros() -> None:
    arrays = new_segment(FIELDS)
    assert size_of(FIELDS) == 64 + 64 + 0 + 64
    assert {name: a.shape for name, a in arrays.items()} == {f.name: f.shape for f in FIELDS}
    for name in ("bytes", "words", "last"):
        assert not arrays[name].any()
        assert arrays[name].ctypes.data % 64 == 0
        arrays[name][:] = 255
        assert sum(int(a.sum() != 0) for a in arrays.values()) == 1
        arrays[name][:] = 0


def test_a_child_writes_what_its_parent_reads() -> None:
    arrays = new_segment(FIELDS)
    child = os.fork()
    if child == 0:
        arrays["words"][3, 1] = 42
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert arrays["words"][3, 1] == 42
