"""What a scheduler is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.snapshot import Pick

Slots = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

#: In so many parts a weight is counted while some backend of the service starts slowly.
RISE_STEPS = 20
#: Slots in one round at the most; a prime, so that it is a size for Maglev's table, too.
MAX_ROUND = 65_537


class Candidates(NamedTuple):
    """The backends of a service."""

    weights: Weights  #: int64[n], effective weights; 0: no new flows
    keys: Keys  #: uint64[n], numbers that a backend has in every process and on every machine
    table_size: int  #: of a scheduler with a table of its own


class Scheduler(NamedTuple):
    """A strategy: the supervisor fills a service's slots with backends, a worker takes one out of them."""

    #: Slots: uint16[m], m <= MAX_ROUND, indices of candidates; empty if all weights are 0.
    slots: Callable[[Candidates], Slots]
    pick: Pick = Pick.NEXT
    plus: int = 0  #: for Pick.LEAST and others that compare open flows
    weighted: bool = True  #: for the same: whether weights count
    fills_table: bool = False  #: it takes `table_size` slots, whatever the weights are

    @property
    def compares(self) -> bool:
        """Whether open flows are compared with a weight, and not only weights with each other."""
        return self.pick in (Pick.ROOM, Pick.LOCAL, Pick.REPLICATED)
