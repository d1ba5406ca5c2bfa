"""A scheduler of the operator's own: its slots come from a Python file, see loaded_mp/own_scheduler.

Workers take them in turn. As long as the file has given none, or none of those that it gave may have new
flows, new flows are spread by weight.
"""

from loaded_mp.schedulers.scheduler import Candidates, Scheduler, Slots
from loaded_mp.schedulers.wrr import interleaved_within


def _slots(candidates: Candidates) -> Slots:
    """As `wrr`, in at most `table_size` slots, unless there are more backends."""
    return interleaved_within(candidates.weights, max(candidates.table_size, candidates.weights.size))


SCHEDULER = Scheduler(_slots, fills_table=True)
