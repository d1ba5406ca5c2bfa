"""Which backend a new flow gets: one file for each scheduler."""

from loaded_mp.schedulers import dh, fo, lblc, lblcr, lc, mh, nq, ovf, own, rr, sed, sh, twos, wlc, wrr
from loaded_mp.schedulers.scheduler import Scheduler

#: By name in a configuration.
SCHEDULERS: dict[str, Scheduler] = {
    "rr": rr.SCHEDULER,
    "wrr": wrr.SCHEDULER,
    "lc": lc.SCHEDULER,
    "wlc": wlc.SCHEDULER,
    "sed": sed.SCHEDULER,
    "nq": nq.SCHEDULER,
    "lblc": lblc.SCHEDULER,
    "lblcr": lblcr.SCHEDULER,
    "sh": sh.SCHEDULER,
    "dh": dh.SCHEDULER,
    "mh": mh.SCHEDULER,
    "fo": fo.SCHEDULER,
    "ovf": ovf.SCHEDULER,
    "twos": twos.SCHEDULER,
}


def scheduler_of(name: str) -> Scheduler:
    """The scheduler with a name, or that of a file of the operator's."""
    return SCHEDULERS.get(name, own.SCHEDULER)


def is_own(name: str) -> bool:
    """Whether it is a file of the operator's."""
    return name not in SCHEDULERS
