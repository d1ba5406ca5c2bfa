"""The commands that an operator has run when enough backends of a service serve, and when too few do."""

import asyncio
import logging

from loaded_mp.checks.check import LocalError
from loaded_mp.checks.program import Words, run_program
from loaded_mp.log import event
from loaded_mp.services import Part, ServiceKey

log = logging.getLogger(__name__)

#: A command that takes longer is killed.
TIMEOUT_S = 30.0
#: Commands at the same moment; others wait.
_MOST = 16


class Quorum:
    """Runs them beside the loop: of one service one after the other, and only what is still true."""

    def __init__(self) -> None:
        self._due: dict[ServiceKey, tuple[Part, bool]] = {}
        self._running: set[ServiceKey] = set()
        self._told = asyncio.Event()
        self._room = asyncio.Semaphore(_MOST)

    def tell(self, part: Part, reached: bool) -> None:
        """It is reached, or no more, by what is now so."""
        self._due[part.service.name, part.family] = part, reached
        self._told.set()

    async def run(self) -> None:
        """Run what is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._told.wait()
                self._told.clear()
                for key in self._due.keys() - self._running:
                    self._running.add(key)
                    tasks.create_task(self._run_due(key))

    async def _run_due(self, key: ServiceKey) -> None:
        async with self._room:
            while due := self._due.pop(key, None):
                await _run(*due)
        self._running.discard(key)


async def _run(part: Part, reached: bool) -> None:
    service = part.service
    command: Words = service.quorum_up if reached else service.quorum_down
    if not command:
        return
    names = {"{service}": service.name, "{family}": str(part.family)}
    words = [names.get(word, word) for word in command]
    about = {"service": service.name, "family": f"IPv{part.family}", "command": command[0]}
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status, said = await run_program(words, service.quorum_user)
    except (TimeoutError, LocalError) as error:
        fault = str(error) or f"has not ended within {TIMEOUT_S:g} s and was killed"
        log.error(event("quorum-command-failed", **about, cause=fault))
        return
    if status:
        log.error(event("quorum-command-failed", **about, cause=said))
    else:
        log.info(event("quorum-command", **about, said=said))
