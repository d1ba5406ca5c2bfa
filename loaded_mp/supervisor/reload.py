"""Taking over a changed configuration while everything runs."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loaded_mp.checks.runner import Runner
from loaded_mp.config.bounded import load_bounded
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config
from loaded_mp.log import event, set_level
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.network.errors import NetworkError
from loaded_mp.services import TooLargeError
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.aside import aside
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.network_setup import NetworkSetup
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.state import Stops
from loaded_mp.supervisor.sweep import Forget, Sweeper

log = logging.getLogger(__name__)

#: What only a restart can change, as it sizes or places what runs already.
_FIXED = (
    "workers",
    "first_queue",
    "first_core",
    "last_core",
    "queue_length",
    "flows",
    "user",
    "metrics_listen",
    "control_group",
)

Load = Callable[[], Config]


class RefusedError(Exception):
    """There is no configuration to go on with."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = list(mistakes)


@dataclass(frozen=True)
class Reload:
    """Takes over what `load` reads: all of it, or nothing."""

    load: Load
    memory: SharedMemory
    backends: Backends
    publisher: Publisher
    changes: Changes
    checks: Runner
    sweeper: Sweeper
    accounting: Accounting
    network: NetworkSetup
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  #: held meanwhile

    async def reload(self) -> list[str]:
        """Take over the configuration as it is now; what is wrong with it, or nothing. Then the old stays."""
        async with self.lock:
            try:
                await self._take_over(await read_again(self.load))
            except RefusedError as refused:
                for mistake in refused.mistakes:
                    log.error(event("reload-refused", mistake=mistake, effect="the old configuration stays"))
                return refused.mistakes
        return []

    async def _take_over(self, config: Config) -> None:
        before = self.backends.services.config
        fixed = {key: getattr(before, key) for key in _FIXED}
        changed = [key for key in _FIXED if getattr(config, key) != fixed[key]]
        if changed:
            log.warning(event("restart-needed", keys=",".join(changed), effect="these keep their values"))
        config = config.model_copy(update=fixed)
        if config == before:
            log.info(event("reloaded", changed="nothing"))
            return
        try:
            await self._run_with(config)
        except (TooLargeError, NetworkError) as error:
            raise RefusedError(str(error)) from error
        set_level(config.log_level)
        self.checks.update(self.backends.targets())
        log.info(event("reloaded", services=len(config.services), generation=self.publisher.generation))
        await self._release_removed()
        self.backends.note()

    async def _run_with(self, config: Config) -> None:
        """Take over a configuration. Raises TooLargeError or NetworkError; then all is as it was."""
        before = self.backends.services
        after = self.backends.expand(config, before)
        try:
            planned = await self.network.planned(after)
            await self.changes.say_goodbye(self._served(before.part_of.keys() - after.part_of.keys()))
            self.backends.configure(after)
            await self.publisher.publish(self.backends.fill)
            await self.network.change(before, planned)
            await aside(lambda: self.backends.leave(before))
        except NetworkError:
            self.backends.configure(self.backends.expand(before.config, after))
            self.backends.stop(before.part_of, Stops.NOT)
            await self.publisher.publish(self.backends.fill)
            raise

    def _served(self, backends: Iterable[int]) -> list[int]:
        """Those of the backends that have flows."""
        open_flows = self.memory.active.sum(axis=0)
        return [number for number in backends if open_flows[number] > 0]

    async def _release_removed(self) -> None:
        removed = self.backends.removed()
        if removed:
            await self.publisher.stamped()
            await self.changes.forget_connections(self.backends.states.keys() & set(removed))
            await self.sweeper.once(Forget(self.memory.table, removed))
        for value in removed:
            self.accounting.forget(value)
            self.backends.release(value)
        self.backends.release_services()


async def read_again(load: Load) -> Config:
    """The configuration as it is now, in a bounded time. Raises RefusedError."""
    try:
        return await load_bounded(load)
    except ConfigError as error:
        raise RefusedError(*map(str, error.mistakes)) from error
    except OSError as error:
        raise RefusedError(f"no process to read the configuration with: {error.strerror}") from error
