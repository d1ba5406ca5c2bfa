"""Which backend a new flow gets: one file for each scheduler."""

from loaded_mp.schedulers import dh, fo, lc, mh, nq, ovf, rr, sed, sh, twos, wlc, wrr
from loaded_mp.schedulers.scheduler import Scheduler

#: By name in a configuration.
SCHEDULERS: dict[str, Scheduler] = {
    "rr": rr.SCHEDULER,
    "wrr": wrr.SCHEDULER,
    "lc": lc.SCHEDULER,
    "wlc": wlc.SCHEDULER,
    "sed": sed.SCHEDULER,
    "nq": nq.SCHEDULER,
    "sh": sh.SCHEDULER,
    "dh": dh.SCHEDULER,
    "mh": mh.SCHEDULER,
    "fo": fo.SCHEDULER,
    "ovf": ovf.SCHEDULER,
    "twos": twos.SCHEDULER,
}
