"""Overflow: the backend with the highest weight that has fewer open flows than its weight says."""

import numpy as np

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots


def _slots(candidates: Candidates) -> Slots:
    """In descending order of weight, equals in their order."""
    weights = candidates.weights
    order = np.argsort(-weights, kind="stable")
    return order[weights[order] > 0].astype(np.uint16)


SCHEDULER = Scheduler(_slots, Pick.ROOM)
