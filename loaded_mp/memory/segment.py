"""A block of memory that a process shares with the children it forks, cut into numpy arrays.

The memory has no name: it is gone with the last process that uses it, however that process ends, and it
is not bounded by the size of /dev/shm, which is small in containers.
"""

import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_CACHE_LINE = 64


class Field(NamedTuple):
    """One array in a segment."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


def _size(field: Field) -> int:
    """Bytes of a field, rounded up so that the next one begins on a cache line of its own."""
    size = int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize
    return -(-size // _CACHE_LINE) * _CACHE_LINE


def size_of(fields: Sequence[Field]) -> int:
    """Bytes that a segment of these fields takes."""
    return sum(_size(field) for field in fields)


def new_segment(fields: Sequence[Field]) -> dict[str, npt.NDArray[Any]]:
    """Fresh arrays by name, filled with zeros; children forked later see and write the same memory.

    Raises OSError (ENOMEM) if the machine has no room. Pages are taken when they are first written.
    """
    memory = mmap.mmap(-1, size_of(fields))
    arrays: dict[str, npt.NDArray[Any]] = {}
    offset = 0
    for field in fields:
        arrays[field.name] = np.ndarray(field.shape, field.dtype, memory, offset)
        offset += _size(field)
    return arrays
