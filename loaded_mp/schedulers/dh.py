"""Destination hashing: a VIP has its backend for good; for services of many VIPs."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.scheduler import Scheduler
from loaded_mp.schedulers.wrr import interleaved

SCHEDULER = Scheduler(interleaved, Pick.DESTINATION)
