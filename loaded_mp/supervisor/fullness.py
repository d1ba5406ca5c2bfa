"""Saying when a backend has as many flows as it may have, and when it takes new ones again."""

import asyncio
import logging

from loaded_mp.log import event
from loaded_mp.supervisor.backends import Backends

log = logging.getLogger(__name__)

#: Seldom enough that a backend that is full every other moment does not fill the log.
_LOOK_S = 1.0


class Fullness:
    """Looks at the backends that may have only so many flows."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._full: set[int] = set()  #: backend ids, as it was said

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Say what has turned."""
        full = {
            number
            for part in self._backends.services.parts
            if part.service.limits_flows
            for number in part.backends
            if self._backends.full(number)
        }
        for number in full - self._full:
            self._say(number, logging.WARNING, "backend-full", self._backends.full(number))
        for number in self._full - full:
            if number in self._backends.services.part_of:
                self._say(number, logging.INFO, "backend-not-full", "it may have more flows again")
        self._full = full

    def _say(self, number: int, level: int, what: str, cause: str) -> None:
        service, backend = self._backends.name(number)
        flows = self._backends.flows(number)
        log.log(level, event(what, service=service, backend=backend, flows=flows, cause=cause))
