"""Round robin: every backend in turn, whatever its weight; weight 0 takes no new flows."""

import numpy as np

from loaded_mp.schedulers.scheduler import Scheduler, Slots, Weights


def _slots(weights: Weights) -> Slots:
    """One slot for each backend whose weight is not 0, in their order."""
    return np.flatnonzero(weights).astype(np.uint16)


SCHEDULER = Scheduler(_slots)
