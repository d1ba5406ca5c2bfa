"""Shortest expected delay: the fewest open flows for its weight, the new one included."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.rr import each_once
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(each_once, Pick.LEAST, plus=1)
