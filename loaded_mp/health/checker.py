"""Running the checks of all backends."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from loaded_mp.config.model import Address, Check
from loaded_mp.health.rise_fall import Health
from loaded_mp.health.tcp import connect

Targets = Mapping[int, tuple[Address, Check]]  #: by backend id

#: Checks under way at the same moment, so that file descriptors do not run out; the others wait.
MAX_IN_FLIGHT = 256


class Transition(NamedTuple):
    """A backend went up or down."""

    backend: int  #: backend id
    up: bool
    cause: str  #: the last result, as in "connect to 10.0.0.1:80: refused"


class Checker:
    """Checks each target once in its interval and tells `on_change` of every transition."""

    def __init__(self, targets: Targets, on_change: Callable[[Transition], None]) -> None:
        self._on_change = on_change
        self._targets: dict[int, tuple[Address, Check]] = dict(targets)
        self._health = {number: Health() for number in targets}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    def is_up(self, number: int) -> bool:
        """Whether a backend is up; one that is not checked is."""
        return number not in self._health or self._health[number].up

    def update(self, targets: Targets) -> None:
        """Check other targets from now on. A backend that stays keeps its health, however it is checked."""
        changed = [number for number in targets if self._targets.get(number) != targets[number]]
        for number in [*(self._targets.keys() - targets.keys()), *changed]:
            if task := self._tasks.pop(number, None):
                task.cancel()
        self._targets = dict(targets)
        self._health = {number: self._health.get(number, Health()) for number in targets}
        self._start(changed)

    async def run(self) -> None:
        """Check until cancelled. To be called once."""
        async with asyncio.TaskGroup() as self._group:
            self._start(list(self._targets))
            await asyncio.get_running_loop().create_future()  # only a cancellation ends this

    def _start(self, numbers: list[int]) -> None:
        """Start checking, the first checks spread evenly over the interval."""
        if self._group is None:
            return
        for place, number in enumerate(numbers):
            share = place / len(numbers)
            self._tasks[number] = self._group.create_task(self._check(number, share))

    async def _check(self, number: int, share: float) -> None:
        address, check = self._targets[number]
        name = f"[{address}]:{check.port}" if address.version == 6 else f"{address}:{check.port}"
        clock = asyncio.get_running_loop().time
        due_s = clock() + share * check.interval_s
        while True:
            await asyncio.sleep(due_s - clock())
            async with self._in_flight:
                fault = await connect(address, check.port, check.timeout_s)
            before = self._health[number]
            self._health[number] = after = before.after(fault is None, check.rise, check.fall)
            if after.up != before.up:
                cause = f"connect to {name}: {fault or 'accepted'}"
                self._on_change(Transition(number, after.up, cause))
            due_s = max(due_s + check.interval_s, clock())
