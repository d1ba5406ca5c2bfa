"""Round robin: every backend in turn, whatever its weight; weight 0 takes no new flows."""

import numpy as np
import numpy.typing as npt


def round_robin(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """One slot for each backend whose weight is not 0, in their order."""
    return np.flatnonzero(weights).astype(np.uint16)
