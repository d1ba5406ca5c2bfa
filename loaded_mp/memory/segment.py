"""A block of memory that processes share, cut into numpy arrays.

It is a file without a name (memfd_create(2)): gone with the last process that has it, however that process
ends, and not bounded by the size of /dev/shm, which is small in containers. Children inherit it; another
process maps the same memory by its descriptor, if it knows the same layout.
"""

import hashlib
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.counters import CACHE_LINE

_NAME = "loaded-mp"
#: Bytes in front of the first array: the hash of the layout, SHA-256.
_HEADER = CACHE_LINE


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

    def __init__(self, descriptor: int, fields: Sequence[Field]) -> None:
        """Map `descriptor`, which holds `fields` already. Raises LayoutError, or OSError if it cannot be."""
        size = size_of(fields)
        if os.fstat(descriptor).st_size != size:
            raise LayoutError("the shared memory has another size")
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, size)
        if self._memory[:_HEADER].rstrip(b"\0") != _layout(fields).rstrip(b"\0"):
            raise LayoutError("the shared memory has another layout")
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        offset = _HEADER
        for field in fields:
            self.arrays[field.name] = np.ndarray(field.shape, field.dtype, self._memory, offset)
            offset += _size(field)


def new_segment(fields: Sequence[Field]) -> Segment:
    """Fresh memory, filled with zeros; children forked later see and write the same.

    Raises OSError (ENOMEM) if the machine has no room. Pages are taken when they are first written.
    """
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_of(fields))
        os.pwrite(descriptor, _layout(fields), 0)
        return Segment(descriptor, fields)
    except OSError:
        os.close(descriptor)
        raise


def size_of(fields: Sequence[Field]) -> int:
    """Bytes that a segment of these fields takes."""
    return _HEADER + sum(_size(field) for field in fields)


def _size(field: Field) -> int:
    """Bytes of a field, rounded up so that the next one begins on a cache line of its own."""
    size = int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize
    return -(-size // CACHE_LINE) * CACHE_LINE


def _layout(fields: Sequence[Field]) -> bytes:
    """What tells layouts apart."""
    said = [(each.name, np.dtype(each.dtype).str, each.shape, each.columns) for each in fields]
    return hashlib.sha256(repr(said).encode()).digest()
