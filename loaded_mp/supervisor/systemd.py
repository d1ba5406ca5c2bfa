"""What systemd hears of us and is asked: sd_notify(3), the watchdog, and whether a stop is half a restart."""

import asyncio
import logging
import os
import socket
import subprocess
from functools import partial
from pathlib import Path

from loaded_mp.log import event
from loaded_mp.network.errors import NetworkError
from loaded_mp.supervisor.aside import aside

log = logging.getLogger(__name__)

#: In doubt a stop is a stop for good.
_ANSWER_S = 3.0
_TELL_S = 1.0
#: As systemd grants a start (DefaultTimeoutStartSec).
_START_S = 90.0
#: For taking back what was changed on this machine.
_TIDYING_S = 10.0


def tell(state: str) -> None:
    """Tell systemd, as READY=1; units of Type=notify listen, and without systemd nothing is done."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(_TELL_S)
            systemd.sendto(state.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        log.warning(event("systemd-not-told", state=state, cause=str(error)))


def tell_stopping(within_s: float) -> None:
    """Tell systemd that a stop for good has begun, and that it may take so long and a little more."""
    tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((within_s + _TIDYING_S) * 1_000_000)}")


def tell_beginning_anew() -> None:
    """Let a watchdog wait while this process becomes another program, which may have to compile."""
    if _watchdog_us():
        tell(f"WATCHDOG_USEC={int(_START_S * 1_000_000)}")


async def feed_watchdog() -> None:
    """Tell systemd that the loop goes on, twice in each WatchdogSec; without one this ends at once."""
    period_us = _watchdog_us()
    if period_us:
        tell(f"WATCHDOG_USEC={period_us}")
    while period_us:
        tell("WATCHDOG=1")
        await asyncio.sleep(period_us / 2_000_000)


def _watchdog_us() -> int:
    """The time in which systemd's watchdog wants to hear of this process; 0: there is none."""
    period_us = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID") == str(os.getpid())
    return int(period_us) if ours and period_us.isdecimal() else 0


async def is_restarting() -> bool:
    """Whether systemd stops this process only to start it again, as `systemctl restart` or an upgrade does.

    SIGTERM looks the same for both; the job that systemd runs for the unit tells. False if systemd did not
    start this process, or does not answer.
    """
    unit = _unit()
    if not unit:
        return False
    try:
        jobs = await aside(partial(_jobs, unit))
    except (OSError, NetworkError, subprocess.SubprocessError) as error:  # no process, no thread, no answer
        log.warning(event("restart-unknown", cause=str(error), effect="this is a stop for good"))
        return False
    return restarts(jobs, unit)


def _jobs(unit: str) -> str:
    command = ["systemctl", "list-jobs", "--no-legend", "--no-pager", unit]
    return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=True).stdout


def restarts(jobs: str, unit: str) -> bool:
    """Whether the lines of `systemctl list-jobs`, each NUMBER UNIT TYPE STATE, hold a restart of the unit."""
    return any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines())


def _unit() -> str:
    """The service whose main process this is; empty: none."""
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return ""
    return unit_of(Path("/proc/self/cgroup").read_text())


def unit_of(groups: str) -> str:
    """The service that the lines of cgroups(7), each NUMBER:CONTROLLERS:PATH, name; empty: none."""
    names = [line.rpartition("/")[2] for line in groups.splitlines()]
    return next((name for name in names if name.endswith(".service")), "")
