"""The worker processes: forked, watched, replaced."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loaded_mp import worker
from loaded_mp.datapath.queue import Queue
from loaded_mp.log import event
from loaded_mp.memory.shared import HEARTBEAT_MS, SharedMemory

log = logging.getLogger(__name__)

#: A worker that has not been heard of for so long is replaced. Its loop speaks up every 0.1 s.
HANG_S = 2.0
_WATCH_S = 0.25
#: A worker that lived so long died by accident: it is replaced at once.
_SOUND_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_START_TIMEOUT_S = 10.0
_NAME = "loaded-mp-w"
_PR_SET_NAME = 15


class StartError(Exception):
    """The workers do not come up."""


@dataclass
class Child:
    """One worker's place, whoever fills it."""

    number: int
    queue: Queue
    core: int | None
    pid: int = 0  #: 0: nobody at the moment
    started_s: float = 0.0
    restarts: int = 0
    pause_s: float = 0.0  #: before the next start
    due_s: float = 0.0  #: when the next start is due


class Children:
    """All workers of this daemon."""

    def __init__(
        self, memory: SharedMemory, queues: Sequence[Queue], cores: Sequence[int | None], user: str
    ) -> None:
        self._memory = memory
        self._user = user
        self._stopping = False
        self.children = [
            Child(number, queue, core) for number, (queue, core) in enumerate(zip(queues, cores, strict=True))
        ]

    async def start(self) -> None:
        """Fork all workers and wait until each has been heard of. Raises StartError."""
        for child in self.children:
            self._fork(child)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not all(child.pid and self._heartbeat_s(child) >= child.started_s for child in self.children):
            self.reap()
            if any(child.restarts for child in self.children) or time.monotonic() > deadline:
                raise StartError("the workers do not come up; the lines above say why")
            await asyncio.sleep(0.005)

    async def watch(self) -> None:
        """Replace workers that died or hang, until cancelled."""
        watched_s = time.monotonic()
        while True:
            self.reap()
            now = time.monotonic()
            # If we were held up ourselves, so were the workers: they get time to speak up first.
            late = now - watched_s > HANG_S / 2
            watched_s = now
            for child in self.children:
                if not child.pid:
                    if now >= child.due_s:
                        self._fork(child)
                elif not late and now - max(self._heartbeat_s(child), child.started_s) > HANG_S:
                    log.error(event("worker-hangs", worker=child.number, pid=child.pid, silent_s=HANG_S))
                    os.kill(child.pid, signal.SIGKILL)
            await asyncio.sleep(_WATCH_S)

    def reap(self) -> None:
        """Take note of workers that ended and replace them; to be called at SIGCHLD."""
        for child in self.children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._ended(child, os.waitstatus_to_exitcode(status))

    async def stop(self) -> None:
        """Let the workers serve what waits, then end them, all within a bounded time."""
        self._stopping = True
        for child in self.children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + worker.DRAIN_S + 1
        while any(child.pid for child in self.children):
            if time.monotonic() > deadline:
                for child in self.children:
                    if child.pid:
                        log.error(event("worker-killed", worker=child.number, pid=child.pid))
                        os.kill(child.pid, signal.SIGKILL)
                deadline = float("inf")
            await asyncio.sleep(0.01)
            self.reap()

    def _heartbeat_s(self, child: Child) -> float:
        return float(self._memory.workers[child.number, HEARTBEAT_MS]) / 1000

    def _ended(self, child: Child, code: int) -> None:
        lived_s = time.monotonic() - child.started_s
        pid, child.pid = child.pid, 0
        if self._stopping:
            return
        child.restarts += 1
        if lived_s >= _SOUND_S:
            child.pause_s = 0.0
        log.error(
            event(
                "worker-died",
                worker=child.number,
                pid=pid,
                cause=f"signal {-code}" if code < 0 else f"status {code}",
                lived_s=f"{lived_s:.1f}",
                restart_in_s=child.pause_s,
            )
        )
        child.due_s = time.monotonic() + child.pause_s
        child.pause_s = min(max(_FIRST_PAUSE_S, child.pause_s * 2), _LONGEST_PAUSE_S)
        if child.due_s <= time.monotonic():
            self._fork(child)

    def _fork(self, child: Child) -> None:
        # Rounded down: the heartbeat is in whole milliseconds.
        child.started_s = int(time.monotonic() * 1000) / 1000
        replacing = child.restarts > 0
        child.pid = os.fork()
        if child.pid:
            if replacing:
                log.info(event("worker-started", worker=child.number, pid=child.pid))
            return
        try:
            signal.set_wakeup_fd(-1)
            ctypes.CDLL(None).prctl(_PR_SET_NAME, f"{_NAME}{child.number}".encode(), 0, 0, 0)
            _close_all_but(child.queue.descriptor)
            worker.run(
                self._memory,
                child.number,
                child.queue.descriptor,
                child.queue.number,
                child.core,
                self._user,
                replacing,
            )
        finally:
            os._exit(1)


def _close_all_but(descriptor: int) -> None:
    """Close everything that was inherited except the standard streams and `descriptor`."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _orphans() -> list[int]:
    """Workers in this network namespace whose supervisor is another process than this."""
    here = os.readlink("/proc/self/ns/net")
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if (
                (folder / "comm").read_text().startswith(_NAME)
                and os.readlink(folder / "ns/net") == here
                and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != os.getpid()
            ):
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def end_orphans() -> int:
    """End the workers that a killed supervisor left behind in this network namespace; returns how many.

    To be called by the only supervisor of the namespace, before it opens its queues.
    """
    orphans = _orphans()
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while _orphans() and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(orphans)
