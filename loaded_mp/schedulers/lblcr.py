"""Locality-based least connection with replication: as lblc, but a VIP keeps several backends.

Where lblc would give a VIP another backend, lblcr adds it to those that the VIP has, 16 at the most, of which
the one with the fewest flows for its weight is taken. When none was added for a day, all but the first are
taken away; LVS takes the most loaded one then, and another one a day later.
"""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.rr import each_once
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(each_once, Pick.REPLICATED)
