"""Overflow: the backend with the highest weight that has no more open flows than its weight says."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.fo import by_weight
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(by_weight, Pick.ROOM)
