"""How much there was in a second, from the last two readings of what only rises."""

import asyncio
import time
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.shared import CORES, SharedMemory
from loaded_mp.memory.snapshot import MAX_BACKENDS
from loaded_mp.supervisor.accounting import Accounting

#: As often as others than workers are read: between two of their readings nothing would seem to happen.
_INTERVAL_S = 5.0


class Rates:
    """Of backends."""

    def __init__(
        self, memory: SharedMemory, accounting: Accounting, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = memory
        self._accounting = accounting
        self._clock = clock
        self._read_s, self._last = clock(), self._counted()
        self._rates = np.zeros_like(self._last)

    async def run(self) -> None:
        """Read again and again, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self.read()

    def read(self) -> None:
        """Let the rates be those since the last reading."""
        now_s, now = self._clock(), self._counted()
        # What fell is of another backend that has the id now.
        self._rates = np.round(np.maximum(now - self._last, 0) / max(now_s - self._read_s, 0.001), 1)
        self._read_s, self._last = now_s, now

    def of(self, number: int, counters: Iterable[BackendCounter] = BackendCounter) -> dict[str, float]:
        """The rates of a backend id, by the lower-case names of these counters."""
        return {each.name.lower(): float(self._rates[number, each]) for each in counters}

    def _counted(self) -> npt.NDArray[np.float64]:
        """float64[MAX_BACKENDS, len(BackendCounter)]."""
        counted = np.zeros((MAX_BACKENDS, len(BackendCounter)))
        # One by one: a sum over all would copy many MiB.
        for row in (*self._memory.backends[: self._memory.rows[0]], *self._memory.kernel_backends[:CORES]):
            counted += row[:, : len(BackendCounter)]
        for number, more in self._accounting.counted.items():
            for column, value in more.items():
                counted[number, column] += value
        return counted
