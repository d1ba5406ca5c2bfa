"""Power of two choices: of two backends taken at random by weight, the less loaded for its weight."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Scheduler
from loaded_mp.schedulers.wrr import interleaved

SCHEDULER = Scheduler(interleaved, Pick.TWO)
