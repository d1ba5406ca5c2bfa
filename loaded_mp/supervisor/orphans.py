"""Workers that a killed supervisor left behind."""

import contextlib
import os
import signal
import time
from pathlib import Path

from loaded_mp.supervisor.children import NAME

_TIMEOUT_S = 2


def end_orphans() -> int:
    """End the workers that a killed supervisor left behind in this network namespace; returns how many.

    To be called by the only supervisor of the namespace, before it opens its queues.
    """
    found = orphans()
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + _TIMEOUT_S
    while orphans() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return len(found)


def orphans() -> list[int]:
    """Workers in this network namespace whose supervisor is another process than this."""
    here = os.readlink("/proc/self/ns/net")
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if (
                (folder / "comm").read_text().startswith(NAME)
                and os.readlink(folder / "ns/net") == here
                and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != os.getpid()
            ):
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found
