"""Source hashing: a client has its backend for good, by its address."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Scheduler
from loaded_mp.schedulers.wrr import interleaved

SCHEDULER = Scheduler(interleaved, Pick.HASH)
