"""Maglev hashing: a client has its backend by its address, and few change it when a backend comes or goes.

Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer (NSDI 2016), 3.4.
"""

import numpy as np

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots


def _slots(candidates: Candidates) -> Slots:
    """Maglev's table of `table_size` slots, a prime."""
    from loaded_mp.schedulers.maglev import fill_table  # noqa: PLC0415 (numba: names need not wait for it)

    weights, keys, size = candidates
    if not weights.any():
        return np.empty(0, np.uint16)
    offsets = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64) % size
    skips = (keys >> np.uint64(32)).astype(np.int64) % (size - 1) + 1
    table = np.full(size, -1, np.int64)
    turns = weights // np.gcd.reduce(weights)
    fill_table(turns, offsets, skips, np.zeros((2, weights.size), np.int64), table)
    return table.astype(np.uint16)


SCHEDULER = Scheduler(_slots, Pick.HASH, fills_table=True)
