"""What a scheduler is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.snapshot import Pick

Slots = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.int64]

#: Slots in one round at the most.
MAX_ROUND = 1 << 16
#: In so many parts a weight is counted while some backend of the service starts slowly.
RISE_STEPS = 20


@dataclass(frozen=True)
class Scheduler:
    """A strategy: the supervisor fills a service's slots with backends, a worker takes one out of them."""

    #: From effective weights (int64[n]; 0: no new flows) to slots: uint16[m], m <= MAX_ROUND, indices into
    #: the weights; empty if all are 0.
    slots: Callable[[Weights], Slots]
    pick: Pick = Pick.NEXT
    plus: int = 0  #: for Pick.LEAST
    weighted: bool = True  #: for Pick.LEAST: whether weights count
