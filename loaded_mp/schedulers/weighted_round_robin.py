"""Weighted round robin, smooth: a round holds every backend as often as its weight says, well interleaved."""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled

#: Slots in one round at the most. Weights that need more are scaled down, each to at least 1.
MAX_ROUND = 1 << 16


@compiled
def _interleave(
    weights: npt.NDArray[np.int64], credits: npt.NDArray[np.int64], slots: npt.NDArray[np.uint16]
) -> None:
    """Each step every backend earns its weight; the richest (first of equals) is taken and pays the sum."""
    total = 0
    for weight in weights:
        total += weight
    for i in range(slots.size):
        richest = 0
        for backend in range(weights.size):
            credits[backend] += weights[backend]
            if credits[backend] > credits[richest]:
                richest = backend
        credits[richest] -= total
        slots[i] = richest


def weighted_round_robin(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """One round of smooth weighted round robin, as nginx orders it."""
    total = int(weights.sum())
    if total == 0:
        return np.empty(0, np.uint16)
    weights = weights // np.gcd.reduce(weights)
    if weights.sum() > MAX_ROUND:
        scaled = weights * (MAX_ROUND - weights.size) // weights.sum()
        weights = np.where(weights > 0, np.maximum(scaled, 1), 0)
    slots = np.empty(int(weights.sum()), np.uint16)
    _interleave(weights, np.zeros_like(weights), slots)
    return slots
