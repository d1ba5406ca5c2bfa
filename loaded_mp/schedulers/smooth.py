"""The order of smooth weighted round robin."""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled


@compiled
def interleave(
    weights: npt.NDArray[np.int64], credits: npt.NDArray[np.int64], slots: npt.NDArray[np.uint16]
) -> None:
    """Fill `slots` with indices into `weights`; `credits` are zeros, one for each weight.

    Each step every backend earns its weight; the richest (first of equals) is taken and pays the sum.
    """
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
