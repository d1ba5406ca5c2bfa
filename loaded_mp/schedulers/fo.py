"""Weighted failover: the backend with the highest weight, the first of equals; the others wait."""

import numpy as np

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots


def by_weight(candidates: Candidates) -> Slots:
    """One slot for each backend whose weight is not 0, the highest first, equals in their order."""
    weights = candidates.weights
    order = np.argsort(-weights, kind="stable")
    return order[weights[order] > 0].astype(np.uint16)


SCHEDULER = Scheduler(by_weight, Pick.FIRST)
