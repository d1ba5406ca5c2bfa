"""Asking all backends, again and again."""

import asyncio
import logging
import random
import resource
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from loaded_mp.checks.check import Check, Fault, Finding, LocalError, SilentError, fault_of, is_local
from loaded_mp.fields import Endpoint
from loaded_mp.log import event

log = logging.getLogger(__name__)

#: Attempts under way at the same moment, and the share of our descriptors that they may take; others wait.
MAX_IN_FLIGHT = 4_096
_SHARE_OF_DESCRIPTORS = 0.5

#: Attempts that are begun before those under way are listened to again, so that none waits long for us.
_AT_ONCE = 32

#: A time-out that we notice so much too late says that this machine was busy, and nothing of a backend.
_BUSY_S = 0.1

#: Each pause is up to so much of the interval shorter or longer, so that checks do not march in step.
_JITTER = 0.05

#: What hinders all checks is said once in so long.
_SAY_AGAIN_S = 60.0


class Target(NamedTuple):
    """Who is asked what."""

    backend: int  #: backend id
    endpoint: Endpoint
    check: Check

    @property
    def question(self) -> str:
        """What is asked, for people."""
        return self.check.question(self.endpoint)


Targets = Collection[Target]


@dataclass(frozen=True)
class Result:
    """What one attempt found."""

    target: Target
    finding: Finding
    started_s: float  #: CLOCK_MONOTONIC
    took_s: float = 0.0
    late_s: float = 0.0  #: by how much it was begun later than it was due

    @property
    def backend(self) -> int:
        """The backend id."""
        return self.target.backend

    @property
    def text(self) -> str:
        """As in "connect to 10.0.0.1:80: refused"."""
        return f"{self.target.question}: {self.finding.fault or self.finding.said}"


@dataclass
class _Asking:
    """Where we are with one target."""

    target: Target
    due_s: float
    handle: asyncio.TimerHandle | asyncio.Task[None] | None = None  #: of the attempt that comes, or goes on
    passed: bool = True  #: the last result
    in_a_row: int = 0  #: results that were the same


class Runner:
    """Asks each target once in its interval and tells every result.

    Attempts of one target never overlap: an attempt ends, or is ended, before the next one begins.
    """

    def __init__(self, targets: Targets, heard: Callable[[Result], None]) -> None:
        self._heard = heard
        self._wanted = list(dict.fromkeys(targets))
        self._asking: dict[Target, _Asking] = {}
        self._group: asyncio.TaskGroup | None = None
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._room = min(MAX_IN_FLIGHT, int(descriptors * _SHARE_OF_DESCRIPTORS))
        self._waiting: deque[_Asking] = deque()  #: for room
        self._filling = False  #: soon
        self._hindered: dict[tuple[str, str], float] = {}  #: type and cause -> when it was said
        self._silent: set[Target] = set()

    async def run(self) -> None:
        """Check until cancelled. To be called once."""
        async with asyncio.TaskGroup() as self._group:
            self._start(self._wanted)
            try:
                await asyncio.get_running_loop().create_future()  # only a cancellation ends this
            finally:
                self.update([])

    def update(self, targets: Targets) -> None:
        """Check other targets from now on; of those that are gone or changed no result comes any more."""
        self._wanted = list(dict.fromkeys(targets))
        for target in self._asking.keys() - set(self._wanted):
            if handle := self._asking.pop(target).handle:
                handle.cancel()
            self._silent.discard(target)
        self._start([target for target in self._wanted if target not in self._asking])

    def hasten(self, backend: int) -> None:
        """Ask a backend anew at once, and fast until its checks agree."""
        hastened = [target for target in self._asking if target.backend == backend]
        self.update([target for target in self._wanted if target.backend != backend])
        self._wanted += hastened
        self._start(hastened, at_once=True)

    def _start(self, targets: list[Target], at_once: bool = False) -> None:
        """Start checking, the first checks spread evenly over the interval unless all come at once."""
        if self._group is None:
            return
        now_s = asyncio.get_running_loop().time()
        for place, target in enumerate(targets):
            share = 0 if at_once else place / len(targets)
            asking = _Asking(target, now_s + share * target.check.interval_s)
            self._asking[target] = asking
            self._wait(asking)

    def _wait(self, asking: _Asking) -> None:
        asking.handle = asyncio.get_running_loop().call_at(asking.due_s, self._begin, asking)

    def _begin(self, asking: _Asking) -> None:
        self._waiting.append(asking)
        self._fill_room_soon()

    def _fill_room_soon(self) -> None:
        if self._waiting and self._room and not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill_room)

    def _fill_room(self) -> None:
        """Begin some of the attempts that wait."""
        self._filling = False
        for _ in range(min(_AT_ONCE, len(self._waiting), self._room)):
            asking = self._waiting.popleft()
            if self._group and self._goes_on(asking):
                self._room -= 1
                asking.handle = self._group.create_task(self._once(asking))
                asking.handle.add_done_callback(self._ended)
        self._fill_room_soon()

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._room += 1
        self._fill_room_soon()

    def _goes_on(self, asking: _Asking) -> bool:
        return self._asking.get(asking.target) is asking

    async def _once(self, asking: _Asking) -> None:
        result = await self._ask(asking.target, asking.due_s)
        # An attempt may outlive its cancellation.
        if not self._goes_on(asking):
            return
        check = asking.target.check
        pause_s = check.interval_s
        if result:
            passed = result.finding.fault is None
            asking.in_a_row = asking.in_a_row + 1 if passed == asking.passed else 1
            asking.passed = passed
            if check.fast_interval_s and asking.in_a_row < (check.rise if passed else check.fall):
                pause_s = check.fast_interval_s
            self._heard(result)
        due_s = asking.due_s + pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)
        asking.due_s = max(due_s, asyncio.get_running_loop().time())
        self._wait(asking)

    async def _ask(self, target: Target, due_s: float) -> Result | None:
        """Ask once; None if nothing was learnt."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        try:
            finding = await self.attempt(target)
        except LocalError as error:
            self._say_hindered(target.check.type, str(error))
            return None
        except SilentError as error:
            self._say_silent(target, str(error))
            return None
        self._silent.discard(target)
        return Result(target, finding, started_s, clock() - started_s, started_s - due_s)

    async def attempt(self, target: Target) -> Finding:
        """What one attempt finds, a fault included. Raises LocalError and SilentError as a check does."""
        check, clock = target.check, asyncio.get_running_loop().time
        started_s = clock()
        try:
            async with asyncio.timeout(check.timeout_s):
                return await check.attempt(target.endpoint)
        except Fault as fault:
            return Finding(str(fault))
        except TimeoutError as error:
            if error.errno:  # the kernel's own
                return Finding(fault_of(error))
            if clock() - started_s > check.timeout_s + _BUSY_S:
                raise LocalError("this machine was too busy to listen in time") from None
            text = f"no answer within {check.timeout_s:g} s"
            if not check.silence_is_fault:
                raise SilentError(text) from None
            return Finding(text)
        except OSError as error:
            if is_local(error):
                raise LocalError(str(error)) from None
            return Finding(fault_of(error))
        except (LocalError, SilentError):
            raise
        except Exception as error:  # one check's mistake must not end all the others
            log.exception(event("check-broken", check=target.question))
            return Finding(f"{type(error).__name__}: {error}")

    def _say_hindered(self, check: str, cause: str) -> None:
        """Say that this machine cannot ask, each cause once in a while; nobody is down by that."""
        now_s = asyncio.get_running_loop().time()
        self._hindered = {key: s for key, s in self._hindered.items() if now_s < s + _SAY_AGAIN_S}
        if (check, cause) not in self._hindered:
            self._hindered[check, cause] = now_s
            log.error(event("checks-hindered", check=check, cause=cause, effect="backends keep their states"))

    def _say_silent(self, target: Target, cause: str) -> None:
        """Say once that a target says nothing."""
        if target not in self._silent:
            log.warning(
                event("check-silent", check=target.question, cause=cause, effect="its last word holds")
            )
        self._silent.add(target)
