"""Asking the schedulers of the operator's own again and again, and what workers get of it.

A file is asked every `scheduler_interval_s`, and soon after backends have changed. Each time it is read anew,
so what was written into it holds at the next question. When it fails, the slots that it gave before stay.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from loaded_mp.log import event
from loaded_mp.memory.shared import SharedMemory, open_flows
from loaded_mp.own_scheduler.asking import BackendSeen, CheckSeen, SchedulerError, ask
from loaded_mp.schedulers import is_own
from loaded_mp.schedulers.scheduler import Slots
from loaded_mp.services import Part, Services
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.rates import Rates
from loaded_mp.supervisor.service_state import States
from loaded_mp.supervisor.snapshots import Tables

log = logging.getLogger(__name__)

#: Processes at the same moment; others wait.
_MOST = 4
#: The least time from one question to the next, however often backends change.
_LEAST_S = 0.2
#: A fault that was away for so long is said again.
_FORGOTTEN_S = 60.0
_MOST_FAULTS = 100


class _Asked(NamedTuple):
    when_s: float  #: CLOCK_MONOTONIC
    weights: list[int]  #: effective ones


@dataclass
class _Said:
    """Which faults of a service were said, and when each was last there, CLOCK_MONOTONIC."""

    faults: dict[str, float]
    failing: bool = False  #: whether that was said last


class OwnSchedulers:
    """Of the services whose scheduler is a file."""

    def __init__(
        self, memory: SharedMemory, backends: Backends, rates: Rates, tell: Callable[[], None]
    ) -> None:
        """`tell`: there are other slots for workers."""
        self._memory = memory
        self._backends = backends
        self._rates = rates
        self._tell = tell
        self._asked: dict[int, _Asked] = {}  #: by service id
        self._running: set[int] = set()
        self._said: dict[str, _Said] = {}  #: by the name of the service
        self._room = asyncio.Semaphore(_MOST)

    async def run(self) -> None:
        """Ask what is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._backends.filled.clear()
                now_s = time.monotonic()
                due_s = {part.id: self._due_s(part) for part in self._parts() if part.id not in self._running}
                for part in self._parts():
                    if due_s.get(part.id, now_s + 1) <= now_s:
                        self._running.add(part.id)
                        tasks.create_task(self._ask(part))
                later_s = [each - now_s for each in due_s.values() if each > now_s]
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(later_s, default=None)):
                        await self._backends.filled.wait()

    async def first(self) -> None:
        """Ask those that have given no slots so far, as at a start."""
        await asyncio.gather(
            *(self._ask(part) for part in self._parts() if part.id not in self._backends.tables)
        )

    async def imagined(self, before: Services, after: Services, states: States) -> Tables:
        """The slots of services as they would be, in these states. Raises SchedulerError."""
        tables = dict(self._backends.tables)
        for part in after.parts:
            if is_own(part.service.scheduler):
                was = before.by_id.get(part.id)
                if not was or was != part or _weights(was, self._backends.states) != _weights(part, states):
                    tables[part.id] = await self._slots(part, states)
        return tables

    def _parts(self) -> Iterator[Part]:
        return (part for part in self._backends.services.parts if is_own(part.service.scheduler))

    def _due_s(self, part: Part) -> float:
        if part.id not in self._asked:
            return 0
        asked = self._asked[part.id]
        changed = asked.weights != _weights(part, self._backends.states)
        return asked.when_s + (_LEAST_S if changed else max(_LEAST_S, part.service.scheduler_interval_s))

    async def _ask(self, part: Part) -> None:
        self._asked[part.id] = _Asked(time.monotonic(), _weights(part, self._backends.states))
        slots, fault = None, ""
        try:
            async with self._room:
                slots = await self._slots(part, self._backends.states)
        except SchedulerError as error:
            fault = f"{error.place}: {error}"
        finally:
            self._running.discard(part.id)
            self._backends.filled.set()
        now = self._backends.services.by_id.get(part.id)
        if now is None or now.service.scheduler != part.service.scheduler:
            return
        self._say(part, fault)
        self._backends.scheduler_faults[part.id] = fault
        if slots is not None and not np.array_equal(slots, self._backends.tables.get(part.id, slots[:0])):
            self._backends.tables[part.id] = slots
            self._tell()

    async def _slots(self, part: Part, states: States) -> Slots:
        """Backend ids, uint16[n]."""
        flows = open_flows(self._memory)
        known = self._backends.services.part_of
        seen = [
            BackendSeen(
                name=backend.name or str(backend.address),
                address=str(backend.address),
                weight=states[number].effective_weight(backend.weight),
                configured_weight=backend.weight,
                backup=backend.backup,
                up=states[number].up,
                flows=max(0, int(flows[number])) if number in known else 0,
                rates=self._rates.of(number) if number in known else {},
                checks=tuple(
                    CheckSeen(
                        str(check),
                        None if each.asked_s is None else each.finding.fault is None,
                        each.finding.fault or each.finding.said,
                        each.took_s,
                    )
                    for check, each in states[number].checks.items()
                ),
            )
            for number, backend in part.backends.items()
        ]
        most = part.service.table_size
        answer = await ask(part.service.scheduler, part.service.scheduler_user, seen, most)
        ids = np.fromiter(part.backends, np.uint16, len(part.backends))
        return ids[answer.filled([each.weight for each in seen], most)]

    def _say(self, part: Part, fault: str) -> None:
        """Log a fault once, not each time that it is there."""
        service, now_s = part.service.name, time.monotonic()
        said = self._said.setdefault(service, _Said({}))
        if not fault:
            if said.failing:
                said.failing = False
                log.info(event("scheduler-works", service=service, file=part.service.scheduler))
            return
        if now_s - said.faults.get(fault, -_FORGOTTEN_S) >= _FORGOTTEN_S and len(said.faults) < _MOST_FAULTS:
            said.failing = True
            effect = "the slots that it gave before stay" if part.id in self._backends.tables else "as wrr"
            log.error(event("scheduler-failed", service=service, cause=fault, effect=effect))
        said.faults = {text: each for text, each in said.faults.items() if now_s - each < _FORGOTTEN_S}
        said.faults[fault] = now_s


def _weights(part: Part, states: States) -> list[int]:
    return [states[number].effective_weight(each.weight) for number, each in part.backends.items()]
