"""Round robin: every backend in turn, whatever its weight; weight 0 takes no new flows."""

import numpy as np

from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots


def each_once(candidates: Candidates) -> Slots:
    """One slot for each backend whose weight is not 0, in their order."""
    return np.flatnonzero(candidates.weights).astype(np.uint16)


SCHEDULER = Scheduler(each_once)
