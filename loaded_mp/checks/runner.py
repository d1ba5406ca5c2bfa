"""Asking all backends, again and again."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from loaded_mp.checks.check import Check, is_local
from loaded_mp.fields import Address
from loaded_mp.log import event

log = logging.getLogger(__name__)

Targets = Mapping[int, tuple[Address, Check]]  #: by backend id

#: Checks under way at the same moment, so that file descriptors do not run out; the others wait.
MAX_IN_FLIGHT = 256


class Result(NamedTuple):
    """What a check found."""

    backend: int  #: backend id
    fault: str | None  #: None: the backend serves
    text: str  #: as in "connect to 10.0.0.1:80: refused"


class Runner:
    """Asks each target once in its interval and tells every result."""

    def __init__(self, targets: Targets, heard: Callable[[Result], None]) -> None:
        self._heard = heard
        self._targets: dict[int, tuple[Address, Check]] = dict(targets)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._hindered = False

    async def run(self) -> None:
        """Check until cancelled. To be called once."""
        async with asyncio.TaskGroup() as self._group:
            self._start(list(self._targets))
            await asyncio.get_running_loop().create_future()  # only a cancellation ends this

    def update(self, targets: Targets) -> None:
        """Check other targets from now on; of those that are gone or changed no result comes any more."""
        changed = [number for number in targets if self._targets.get(number) != targets[number]]
        for number in [*(self._targets.keys() - targets.keys()), *changed]:
            if task := self._tasks.pop(number, None):
                task.cancel()
        self._targets = dict(targets)
        self._start(changed)

    def _start(self, numbers: list[int]) -> None:
        """Start checking, the first checks spread evenly over the interval."""
        if self._group is None:
            return
        for place, number in enumerate(numbers):
            share = place / len(numbers)
            self._tasks[number] = self._group.create_task(self._ask_again(number, share))

    async def _ask_again(self, number: int, share: float) -> None:
        address, check = self._targets[number]
        clock = asyncio.get_running_loop().time
        due_s = clock() + share * check.interval_s
        while True:
            await asyncio.sleep(due_s - clock())
            async with self._in_flight:
                result = await self._ask(number, address, check)
            # An attempt may outlive its cancellation.
            if self._tasks.get(number) is not asyncio.current_task():
                return
            if result:
                self._heard(result)
            due_s = max(due_s + check.interval_s, clock())

    async def _ask(self, number: int, address: Address, check: Check) -> Result | None:
        """Ask once; None if this machine could not."""
        fault: str | None = None
        try:
            async with asyncio.timeout(check.timeout_s):
                fault = await check.attempt(address)
        except TimeoutError:
            fault = f"no answer within {check.timeout_s:g} s"
        except OSError as error:
            if is_local(error):
                self._say_hindered(error)
                return None
            fault = str(error)
        except Exception as error:  # one check's mistake must not end all the others
            log.exception(event("check-broken", check=check.question(address)))
            fault = f"{type(error).__name__}: {error}"
        self._hindered = False
        return Result(number, fault, f"{check.question(address)}: {fault or check.passed}")

    def _say_hindered(self, error: OSError) -> None:
        """Say once that this machine cannot ask; nobody is down by that."""
        if not self._hindered:
            log.error(event("checks-hindered", cause=str(error), effect="backends keep their states"))
        self._hindered = True
