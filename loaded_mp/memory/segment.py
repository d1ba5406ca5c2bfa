"""A block of memory that processes share, cut into numpy arrays.

It is a file without a name (memfd_create(2)): gone with the last process that has it, however that process
ends, and not bounded by the size of /dev/shm, which is small in containers. Children inherit it; another
process maps the same memory by its descriptor, if it knows the same layout. Where the kernel's programs look
at it too, it is an arena (`arena.py`), which has no name either.
"""

import hashlib
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.bpf import arena_of
from loaded_mp.memory.arena import map_arena, new_arena, pages_of
from loaded_mp.memory.counters import CACHE_LINE

_NAME = "loaded-mp"
#: Bytes in front of the first array: the hash of the layout, SHA-256.
HEADER = CACHE_LINE


class LayoutError(Exception):
    """A segment holds something else than what is looked for in it."""


class Field(NamedTuple):
    """One array in a segment."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()  #: what the last axis means, where it has names


class Segment:
    """The memory and the arrays in it, by the names of their fields."""

    def __init__(self, descriptor: int, fields: Sequence[Field], fresh: bool = False) -> None:
        """Map `descriptor`, which holds `fields` already, or will if it is `fresh`.

        Raises LayoutError, or OSError if it cannot be.
        """
        memory, layout = _map(descriptor, size_of(fields)), _layout(fields)
        if fresh:
            memory[: len(layout)] = layout
        if memory[:HEADER] != layout:
            raise LayoutError("the shared memory has another layout")
        self.descriptor = descriptor
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        offset = HEADER
        for field in fields:
            self.arrays[field.name] = np.ndarray(field.shape, field.dtype, memory, offset)
            offset += _size(field)


def new_segment(fields: Sequence[Field], in_kernel: bool = False) -> Segment:
    """Fresh memory, filled with zeros; children forked later see and write the same.

    `in_kernel`: the kernel's programs can see it too. Raises OSError: ENOMEM if the machine has no room,
    EFBIG if that is too much for the kernel's programs, others if it has no such memory. Pages are taken when
    they are first written.
    """
    size = size_of(fields)
    descriptor = new_arena(size) if in_kernel else os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        if not in_kernel:
            os.ftruncate(descriptor, size)
        return Segment(descriptor, fields, fresh=True)
    except OSError:
        os.close(descriptor)
        raise


def _map(descriptor: int, size: int) -> Any:
    """The memory of a descriptor, unmapped when nobody refers to it. Raises LayoutError or OSError."""
    arena = arena_of(descriptor)
    if (arena.pages if arena else os.fstat(descriptor).st_size) != (pages_of(size) if arena else size):
        raise LayoutError("the shared memory has another size")
    return map_arena(descriptor, arena) if arena else mmap.mmap(descriptor, size)


def size_of(fields: Sequence[Field]) -> int:
    """Bytes that a segment of these fields takes."""
    return HEADER + sum(_size(field) for field in fields)


def _size(field: Field) -> int:
    """Bytes of a field, rounded up so that the next one begins on a cache line of its own."""
    size = int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize
    return -(-size // CACHE_LINE) * CACHE_LINE


def _layout(fields: Sequence[Field]) -> bytes:
    """What tells layouts apart."""
    said = [(each.name, np.dtype(each.dtype).str, each.shape, each.columns) for each in fields]
    return hashlib.sha256(repr(said).encode()).digest().ljust(HEADER, b"\0")
