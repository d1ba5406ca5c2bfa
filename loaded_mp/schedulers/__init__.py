"""Which backend a new flow gets.

A scheduler is a table: the supervisor fills a service's slots with backends, `SCHEDULERS` names the
functions that do it; a worker takes the next slot with `pick`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from loaded_mp.schedulers.round_robin import round_robin
from loaded_mp.schedulers.weighted_round_robin import weighted_round_robin

Slots = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.int64]

#: Name in a configuration -> function from weights to slots. `weights` is int64[n] with a weight (0: no new
#: flows) for each backend; the result is uint16[m] with indices into `weights`, empty if all are 0.
SCHEDULERS: dict[str, Callable[[Weights], Slots]] = {"rr": round_robin, "wrr": weighted_round_robin}
