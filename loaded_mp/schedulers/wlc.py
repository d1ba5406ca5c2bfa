"""Weighted least connection: the backend with the fewest open flows for its weight."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.rr import each_once
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(each_once, Pick.LEAST)
