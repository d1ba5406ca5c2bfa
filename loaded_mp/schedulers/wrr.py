"""Weighted round robin, smooth: a round holds every backend as often as its weight says, well interleaved."""

import numpy as np

from loaded_mp.schedulers.scheduler import MAX_ROUND, Candidates, Scheduler, Slots, Weights


def interleaved(candidates: Candidates) -> Slots:
    """One round of smooth weighted round robin, as nginx orders it.

    Weights that need more than MAX_ROUND slots are scaled down, each to at least 1.
    """
    return interleaved_within(candidates.weights, MAX_ROUND)


def interleaved_within(weights: Weights, most: int) -> Slots:
    """As `interleaved`, where `most`, no less than there are weights, is the most slots."""
    from loaded_mp.schedulers.smooth import interleave  # noqa: PLC0415 (numba: names need not wait for it)

    if not weights.any():
        return np.empty(0, np.uint16)
    weights = weights // np.gcd.reduce(weights)
    if weights.sum() > most:
        scaled = weights * (most - weights.size) // weights.sum()
        weights = np.where(weights > 0, np.maximum(scaled, 1), 0)
    slots = np.empty(int(weights.sum()), np.uint16)
    interleave(weights, np.zeros_like(weights), slots)
    return slots


SCHEDULER = Scheduler(interleaved)
