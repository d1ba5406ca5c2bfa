"""Finding the row of an address with few looks, however many addresses there are.

An index is a hash table with linear probing, of row numbers, or -1 where there is none. It is made with a
seed by which no address is more than PROBES places away.
"""

from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled, signed
from loaded_mp.flows.atomics import Words
from loaded_mp.packet.address import Address128

#: int16[a power of two], of many times the rows that it holds.
Index = npt.NDArray[np.int16]

#: How many places are looked at.
PROBES = 8

#: Odd numbers without a pattern: 2^64 divided by the golden ratio, and a constant of splitmix64.
_FACTOR, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_UPPER_HALF = np.uint64(32)


def _mixed(high: Any, low: Any, seed: np.uint64) -> Any:
    """A hash of 32 bits of one address or of many: uint64, or uint64[n]."""
    return (((high + seed) * _OTHER ^ low) * _FACTOR) >> _UPPER_HALF


_hash = compiled(_mixed)


@compiled
def row_of(index: Index, seed: np.uint64, addresses: Words, address: Address128) -> int:
    """The row of an address in `addresses`, uint64[n, 2], of which `index` was made; -1: it is not there."""
    first = signed(_hash(address.high, address.low, seed) & np.uint64(index.size - 1))
    for i in range(PROBES):
        row = signed(index[(first + i) & (index.size - 1)])
        if row < 0:
            return -1
        if addresses[row, 1] == address.low and addresses[row, 0] == address.high:
            return row
    return -1


def make_index(index: Index, addresses: Words) -> int:
    """Fill an index of `addresses`, uint64[n, 2], each there once; its seed."""
    return next(seed for seed in count() if _filled(index, addresses, np.uint64(seed)))


def _filled(index: Index, addresses: Words, seed: np.uint64) -> bool:
    """Fill it with this seed; False: that leaves an address too far away."""
    index[:] = -1
    places = (_mixed(addresses[:, 0], addresses[:, 1], seed) & np.uint64(index.size - 1)).astype(np.int64)
    left = np.arange(len(addresses))
    for _ in range(PROBES):
        free = left[index[places[left]] < 0]
        index[places[free]] = free
        left = left[index[places[left]] != left]
        places[left] = (places[left] + 1) & (index.size - 1)
    return not left.size
