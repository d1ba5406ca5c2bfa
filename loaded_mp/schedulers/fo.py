"""Weighted failover: the backend with the highest weight, the first of equals; the others wait."""

import numpy as np

from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots


def _slots(candidates: Candidates) -> Slots:
    best = np.argmax(candidates.weights)
    return np.full(1 if candidates.weights[best] else 0, best, np.uint16)


SCHEDULER = Scheduler(_slots)
