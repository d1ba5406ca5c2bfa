"""The worker processes: forked, watched, replaced."""

import asyncio
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loaded_mp.log import event
from loaded_mp.worker import DRAIN_S, Place

log = logging.getLogger(__name__)

#: How the names of workers begin (comm in /proc).
NAME = "loaded-mp-w"
#: A worker that has not been heard of for so long is replaced. Its loop speaks up every 0.1 s.
HANG_S = 2.0
_WATCH_S = 0.25
#: A worker that lived so long died by accident: it is replaced at once.
_SOUND_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_START_TIMEOUT_S = 10.0
_PR_SET_NAME = 15


class StartError(Exception):
    """The workers do not come up."""


@dataclass
class Child:
    """Who fills a worker's place."""

    place: Place
    pid: int = 0  #: 0: nobody at the moment
    started_s: float = 0.0
    restarts: int = 0
    pause_s: float = 0.0  #: before the next start
    due_s: float = 0.0  #: when the next start is due
    taking_over: bool = False  #: another served its queue before, and may have left packets undecided
    leaving: bool = False  #: it is not replaced


class Children:
    """All workers of this daemon. Times are those of `clock`, in seconds."""

    def __init__(
        self,
        places: Sequence[Place],
        work: Callable[[Place, bool], object],
        heartbeat_s: Callable[[int], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`work` is what a child does with its place, and whether it replaces another; then it ends.

        `heartbeat_s` says when the worker of a number was last heard of.
        """
        self._work = work
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._watched_s = clock()
        self.children = [Child(place) for place in places]

    def running(self) -> list[int]:
        """The numbers of the workers that have a process."""
        return [child.place.number for child in self.children if child.pid]

    async def start(self) -> None:
        """Fork all workers and wait until each has been heard of. Raises StartError."""
        await self._come_up(self.children)

    async def join(self, places: Sequence[Place], taking_over: bool = False) -> None:
        """Fork workers for more places and wait until each has been heard of. Raises StartError.

        `taking_over`: others served their queues before, and may have left packets undecided.
        """
        joining = [Child(place, taking_over=taking_over) for place in places]
        self.children += joining
        await self._come_up(joining)

    async def leave(self, stay: int) -> None:
        """Let the workers behind the first `stay` serve what waits, then end them, in a bounded time."""
        await self._end(self.children[stay:])
        del self.children[stay:]

    async def _come_up(self, children: Sequence[Child]) -> None:
        for child in children:
            self._fork(child)
        deadline_s = self._clock() + _START_TIMEOUT_S
        while not all(child.pid and self._heard_s(child) >= child.started_s for child in children):
            self.look()
            if any(child.restarts for child in children) or self._clock() > deadline_s:
                raise StartError("the workers do not come up; the lines above say why")
            await asyncio.sleep(0.005)
        self._watched_s = self._clock()

    async def watch(self) -> None:
        """Replace workers that died or hang, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_WATCH_S)

    def look(self) -> None:
        """Replace workers that died or hang."""
        self.reap()
        now_s = self._clock()
        # If we were held up ourselves, so were the workers: they get time to speak up first.
        late = now_s - self._watched_s > HANG_S / 2
        self._watched_s = now_s
        for child in self.children:
            if not child.pid:
                if now_s >= child.due_s and not child.leaving:
                    self._fork(child)
            elif not late and now_s - max(self._heard_s(child), child.started_s) > HANG_S:
                log.error(event("worker-hangs", worker=child.place.number, pid=child.pid, silent_s=HANG_S))
                os.kill(child.pid, signal.SIGKILL)

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
        await self._end(self.children)

    async def _end(self, children: Sequence[Child]) -> None:
        for child in children:
            child.leaving = True
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        deadline_s = self._clock() + DRAIN_S + 1
        while any(child.pid for child in children):
            if self._clock() > deadline_s:
                for child in children:
                    if child.pid:
                        log.error(event("worker-killed", worker=child.place.number, pid=child.pid))
                        os.kill(child.pid, signal.SIGKILL)
                deadline_s = float("inf")
            await asyncio.sleep(0.01)
            self.reap()

    def _heard_s(self, child: Child) -> float:
        return self._heartbeat_s(child.place.number)

    def _ended(self, child: Child, code: int) -> None:
        lived_s = self._clock() - child.started_s
        pid, child.pid = child.pid, 0
        if child.leaving:
            return
        child.restarts += 1
        if lived_s >= _SOUND_S:
            child.pause_s = 0.0
        log.error(
            event(
                "worker-died",
                worker=child.place.number,
                pid=pid,
                cause=f"signal {-code}" if code < 0 else f"status {code}",
                lived_s=f"{lived_s:.1f}",
                restart_in_s=child.pause_s,
            )
        )
        child.due_s = self._clock() + child.pause_s
        child.pause_s = min(max(_FIRST_PAUSE_S, child.pause_s * 2), _LONGEST_PAUSE_S)
        if child.due_s <= self._clock():
            self._fork(child)

    def _fork(self, child: Child) -> None:
        # Rounded down: the heartbeat is in whole milliseconds.
        child.started_s = int(self._clock() * 1000) / 1000
        replacing = child.restarts > 0 or child.taking_over
        try:
            child.pid = os.fork()
        except OSError as error:  # too many processes, or no memory: that may pass
            child.pause_s = min(max(_FIRST_PAUSE_S, child.pause_s * 2), _LONGEST_PAUSE_S)
            child.due_s = self._clock() + child.pause_s
            log.error(
                event(
                    "fork-failed",
                    worker=child.place.number,
                    cause=os.strerror(error.errno or 0),
                    again_in_s=child.pause_s,
                )
            )
            return
        if child.pid:
            if child.restarts:
                log.info(event("worker-started", worker=child.place.number, pid=child.pid))
            return
        try:
            signal.set_wakeup_fd(-1)
            ctypes.CDLL(None).prctl(_PR_SET_NAME, f"{NAME}{child.place.number}".encode(), 0, 0, 0)
            _close_all_but(child.place.descriptor, child.place.memory, *child.place.links)
            self._work(child.place, replacing)
        finally:
            os._exit(1)


def _close_all_but(*descriptors: int) -> None:
    """Close everything that was inherited except the standard streams and `descriptors`."""
    first = 3
    for descriptor in sorted({each for each in descriptors if each >= first}):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
