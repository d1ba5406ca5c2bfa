"""Never queue: a backend without open flows if there is one, else as with shortest expected delay."""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.rr import each_once
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(each_once, Pick.IDLE, plus=1)
