"""Traffic that others than workers count, such as the kernel's rules."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Counted
from loaded_mp.log import event
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.network.errors import NetworkError
from loaded_mp.services import Services
from loaded_mp.supervisor.aside import aside

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_PATIENCE_S = 10.0


class Accounting:
    """Counters that only rise, although the kernel's begin anew whenever the rules are replaced."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_s = clock()
        self._lock = asyncio.Lock()
        self._before: dict[int, Counter[BackendCounter]] = {}  #: by backend id: what is gone had counted
        self._last: dict[int, Counted] = {}
        self.fault = ""  #: why the last reading failed; empty: it did not

    @property
    def age_s(self) -> float:
        """How old the last reading is."""
        return self._clock() - self._read_s

    @property
    def counted(self) -> dict[int, Counted]:
        """What was counted up to the last reading, by backend id."""
        return {
            number: Counter(self._before.get(number, {})) + Counter(self._last.get(number, {}))
            for number in self._before.keys() | self._last.keys()
        }

    async def run(self, services: Callable[[], Services]) -> None:
        """Read every few seconds, until cancelled. What fails is said once, and tried again."""
        while True:
            try:
                async with self._lock:
                    await self._read(services())
            except (NetworkError, OSError) as error:
                if not self.fault:
                    cause = str(error)
                    log.error(event("counters-not-read", cause=cause, effect="they stay as they are"))
                self.fault = str(error)
            await asyncio.sleep(_INTERVAL_S)

    @asynccontextmanager
    async def beginning_anew(self, services: Services) -> AsyncIterator[None]:
        """Within this all counters begin anew; what they had counted is read before and kept.

        Raises NetworkError if it cannot be read.
        """
        async with self._lock:
            await self._read(services)
            yield
            self._keep(self._last)

    def forget(self, number: int) -> None:
        """A backend id is used by another backend from now on."""
        self._before.pop(number, None)
        self._last.pop(number, None)

    async def _read(self, services: Services) -> None:
        now = await aside(lambda: _counted(services), _PATIENCE_S)
        self._keep(
            number
            for number, last in self._last.items()
            if any(now.get(number, {}).get(column, 0) < value for column, value in last.items())
        )
        if self.fault:
            log.info(event("counters-read", after_s=f"{self.age_s:.0f}"))
            self.fault = ""
        self._last, self._read_s = now, self._clock()

    def _keep(self, numbers: Iterable[int]) -> None:
        """The counters of these backends have begun anew."""
        for number in list(numbers):
            self._before.setdefault(number, Counter()).update(self._last.pop(number))


def _counted(services: Services) -> dict[int, Counted]:
    now: dict[int, Counted] = {}
    for name, forwarding in FORWARDINGS.items():
        families = {part.family for part in services.parts if part.service.forwarding == name}
        if families:
            now |= forwarding.counted(tuple(sorted(families)))
    return now
