"""Asking all backends, again and again."""

import asyncio
import logging
import random
import resource
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from loaded_mp.checks.check import Check, Fault, Finding, LocalError, SilentError, fault_of, is_local
from loaded_mp.fields import Address
from loaded_mp.log import event

log = logging.getLogger(__name__)

#: Attempts under way at the same moment, and the share of our descriptors that they may take; others wait.
MAX_IN_FLIGHT = 4_096
_SHARE_OF_DESCRIPTORS = 0.5

#: Each pause is up to so much of the interval shorter or longer, so that checks do not march in step.
_JITTER = 0.05

#: What hinders all checks is said once in so long.
_SAY_AGAIN_S = 60.0


class Target(NamedTuple):
    """Who is asked what."""

    backend: int  #: backend id
    address: Address
    check: Check

    @property
    def question(self) -> str:
        """What is asked, for people."""
        return self.check.question(self.address)


Targets = Collection[Target]


@dataclass(frozen=True)
class Result:
    """What one attempt found."""

    target: Target
    finding: Finding
    started_s: float  #: CLOCK_MONOTONIC
    took_s: float = 0.0

    @property
    def backend(self) -> int:
        """The backend id."""
        return self.target.backend

    @property
    def text(self) -> str:
        """As in "connect to 10.0.0.1:80: refused"."""
        return f"{self.target.question}: {self.finding.fault or self.finding.said}"


class Runner:
    """Asks each target once in its interval and tells every result.

    Attempts of one target never overlap: an attempt ends, or is ended, before the next one begins.
    """

    def __init__(self, targets: Targets, heard: Callable[[Result], None]) -> None:
        self._heard = heard
        self._wanted = list(dict.fromkeys(targets))
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._in_flight = asyncio.Semaphore(min(MAX_IN_FLIGHT, int(descriptors * _SHARE_OF_DESCRIPTORS)))
        self._hindered: dict[str, float] = {}  #: cause -> when it was said
        self._silent: set[Target] = set()

    async def run(self) -> None:
        """Check until cancelled. To be called once."""
        async with asyncio.TaskGroup() as self._group:
            self._start(self._wanted)
            await asyncio.get_running_loop().create_future()  # only a cancellation ends this

    def update(self, targets: Targets) -> None:
        """Check other targets from now on; of those that are gone or changed no result comes any more."""
        self._wanted = list(dict.fromkeys(targets))
        for target in self._tasks.keys() - set(self._wanted):
            self._tasks.pop(target).cancel()
            self._silent.discard(target)
        self._start([target for target in self._wanted if target not in self._tasks])

    def hasten(self, backend: int) -> None:
        """Ask a backend anew at once, and fast until its checks agree."""
        targets = [target for target in self._tasks if target.backend == backend]
        for target in targets:
            self._tasks.pop(target).cancel()
        self._start(targets, at_once=True)

    def _start(self, targets: list[Target], at_once: bool = False) -> None:
        """Start checking, the first checks spread evenly over the interval unless all come at once."""
        if self._group is None:
            return
        for place, target in enumerate(targets):
            self._tasks[target] = self._group.create_task(
                self._ask_again(target, 0 if at_once else place / len(targets))
            )

    async def _ask_again(self, target: Target, share: float) -> None:
        check = target.check
        clock = asyncio.get_running_loop().time
        due_s = clock() + share * check.interval_s
        passed, in_a_row = True, 0
        while True:
            await asyncio.sleep(due_s - clock())
            async with self._in_flight:
                result = await self._ask(target)
            # An attempt may outlive its cancellation.
            if self._tasks.get(target) is not asyncio.current_task():
                return
            pause_s = check.interval_s
            if result:
                in_a_row = in_a_row + 1 if (result.finding.fault is None) == passed else 1
                passed = result.finding.fault is None
                if check.fast_interval_s and in_a_row < (check.rise if passed else check.fall):
                    pause_s = check.fast_interval_s
                self._heard(result)
            due_s = max(due_s + pause_s * random.uniform(1 - _JITTER, 1 + _JITTER), clock())

    async def _ask(self, target: Target) -> Result | None:
        """Ask once; None if nothing was learnt."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        try:
            finding = await self._attempt(target)
        except LocalError as error:
            self._say_hindered(str(error))
            return None
        except SilentError as error:
            self._say_silent(target, str(error))
            return None
        self._silent.discard(target)
        return Result(target, finding, started_s, clock() - started_s)

    async def _attempt(self, target: Target) -> Finding:
        check = target.check
        try:
            async with asyncio.timeout(check.timeout_s):
                return await check.attempt(target.address)
        except Fault as fault:
            return Finding(str(fault))
        except TimeoutError as error:
            if error.errno:  # the kernel's own
                return Finding(fault_of(error))
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

    def _say_hindered(self, cause: str) -> None:
        """Say that this machine cannot ask, each cause once in a while; nobody is down by that."""
        now_s = asyncio.get_running_loop().time()
        if now_s > self._hindered.get(cause, -_SAY_AGAIN_S) + _SAY_AGAIN_S:
            self._hindered = {
                each: said_s for each, said_s in self._hindered.items() if now_s < said_s + _SAY_AGAIN_S
            }
            self._hindered[cause] = now_s
            log.error(event("checks-hindered", cause=cause, effect="backends keep their states"))

    def _say_silent(self, target: Target, cause: str) -> None:
        """Say once that a target says nothing."""
        if target not in self._silent:
            log.warning(
                event("check-silent", check=target.question, cause=cause, effect="its last word holds")
            )
        self._silent.add(target)
