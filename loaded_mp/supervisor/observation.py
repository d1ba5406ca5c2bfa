"""What workers see of backends takes them down at once; their checks say when they are up again."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loaded_mp.config.model import Observe
from loaded_mp.log import event
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.shared import SharedMemory, counted_of
from loaded_mp.services import Part
from loaded_mp.supervisor.backends import Backends

log = logging.getLogger(__name__)

_LOOK_S = 0.025
#: While no service is observed.
_IDLE_S = 1.0

Counts = npt.NDArray[np.uint64]


@dataclass
class Seen:
    """What was seen of one backend since it last showed that it serves."""

    counts: Counts  #: uint64[n >= len(BackendCounter)], as they were then
    begun_s: float | None = None  #: since when connections have been begun without an answer

    def __post_init__(self) -> None:
        self._spoke = self.counts  #: as they were when it last said something

    def fault(self, counts: Counts, now_s: float, observe: Observe) -> str:
        """What is wrong with the backend, by its counts now; empty: nothing."""
        if counts[BackendCounter.WORDS] > self._spoke[BackendCounter.WORDS]:
            self._spoke = counts.copy()
        reset = int(counts[BackendCounter.RESETS] - self._spoke[BackendCounter.RESETS])
        if reset >= observe.reset:
            return f"{reset} connections were reset before any data came"
        new = {column: int(counts[column] - self.counts[column]) for column in BackendCounter}
        refused, errors = new[BackendCounter.REFUSALS], new[BackendCounter.ERRORS]
        if new[BackendCounter.TO_CLIENT_PACKETS] > refused + errors:
            self.counts, self.begun_s = counts.copy(), None
            return ""
        if refused >= observe.refused:
            return f"{refused} connections were refused"
        if errors >= observe.errors:
            return f"{errors} ICMP errors about packets to it"
        begun = new[BackendCounter.CONNECTIONS] - refused
        if begun >= observe.unanswered:
            self.begun_s = self.begun_s or now_s
            if now_s >= self.begun_s + observe.silent_ms / 1000:
                return f"{begun} connections got no answer for {observe.silent_ms} ms"
        return ""


class Observation:
    """Looks at the counters of the backends of services that are observed."""

    def __init__(self, memory: SharedMemory, backends: Backends, down: Callable[[int, str], None]) -> None:
        """`down` is told the id of a backend that counts as down from now on, and why."""
        self._memory = memory
        self._backends = backends
        self._down = down
        self._seen: dict[int, Seen] = {}
        self._spared: set[int] = set()  #: backends that stay although they seem down, as it was said

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            observed = [part for part in self._backends.services.parts if part.service.observe]
            self.look(observed, time.monotonic())
            await asyncio.sleep(_LOOK_S if observed else _IDLE_S)

    def look(self, parts: Collection[Part], now_s: float) -> None:
        """Look once at the backends of these parts."""
        ids = [number for part in parts for number in part.backends]
        table = counted_of(self._memory, ids)
        counts = dict(zip(ids, table, strict=True))
        self._seen = {number: self._seen.get(number) or Seen(counts[number]) for number in ids}
        for part in parts:
            for number in part.backends:
                self._judge(part, number, counts[number], now_s)

    def _judge(self, part: Part, number: int, counts: Counts, now_s: float) -> None:
        observe, states = part.service.observe, self._backends.states
        assert observe
        if not states[number].up:
            self._seen[number] = Seen(counts)
            return
        fault = self._seen[number].fault(counts, now_s, observe)
        if not fault:
            if self._seen[number].begun_s is None:
                self._spared.discard(number)
            return
        down = sum(states[each].observed_down for each in part.backends)
        if down + 1 > observe.most_share * len(part.backends):
            self._say_spared(number, fault)
            return
        self._seen[number] = Seen(counts)
        self._down(number, fault)

    def _say_spared(self, number: int, fault: str) -> None:
        if number not in self._spared:
            self._spared.add(number)
            service, backend = self._backends.name(number)
            effect = "it stays: as many as most_share allows are down by observation"
            log.warning(event("backend-spared", service=service, backend=backend, cause=fault, effect=effect))
