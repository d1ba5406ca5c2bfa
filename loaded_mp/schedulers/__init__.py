"""Which backend a new flow gets: one file for each scheduler."""

from loaded_mp.schedulers import rr, wrr
from loaded_mp.schedulers.scheduler import Scheduler

#: By name in a configuration.
SCHEDULERS: dict[str, Scheduler] = {"rr": rr.SCHEDULER, "wrr": wrr.SCHEDULER}
