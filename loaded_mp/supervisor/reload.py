"""Taking over a changed configuration while everything runs."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from loaded_mp.checks.runner import Runner
from loaded_mp.config.bounded import load_bounded
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Backend, Config
from loaded_mp.datapath.queue import QueueError
from loaded_mp.fields import Endpoint
from loaded_mp.log import event, set_level
from loaded_mp.memory.shared import SharedMemory, open_flows
from loaded_mp.network.errors import NetworkError
from loaded_mp.own_scheduler.asking import SchedulerError
from loaded_mp.services import BackendKey, TooLargeError
from loaded_mp.status import Outcome
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends, Moving
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.children import StartError
from loaded_mp.supervisor.differences import bounded, forecast_lines, service_differences, settings
from loaded_mp.supervisor.forecast import forecast
from loaded_mp.supervisor.network_setup import NetworkSetup, Planned
from loaded_mp.supervisor.overlay import MisfitError, Overlay, with_backend, without_backend
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.pool import Pool
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.state import Stops
from loaded_mp.supervisor.sweep import Forget, Sweeper

log = logging.getLogger(__name__)

#: What only a restart can change, as it sizes or places what runs already.
_FIXED = (
    "first_queue",
    "first_core",
    "last_core",
    "queue_length",
    "fast_path",
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
    pool: Pool
    own: OwnSchedulers
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  #: held meanwhile

    async def reload(self, dry_run: bool = False) -> Outcome:
        """Take over the configuration as it is now, or only say what that would change."""
        async with self.lock:
            try:
                config = await read_again(self.load)
                overlay = self.backends.overlay.beside(config)
                if dry_run:
                    return await self._foreseen(overlay.over(config))
                return await self._take_over(overlay.over(config), overlay)
            except RefusedError as refused:
                for mistake in refused.mistakes if not dry_run else ():
                    log.error(event("reload-refused", mistake=mistake, effect="the old configuration stays"))
                return Outcome(mistakes=tuple(refused.mistakes))

    async def compare(self, config: Config) -> Outcome:
        """What it would change to take over a configuration."""
        async with self.lock:
            try:
                return await self._foreseen(self.backends.overlay.beside(config).over(config))
            except RefusedError as refused:
                return Outcome(mistakes=tuple(refused.mistakes))

    async def add(self, service: str, backend: Backend) -> list[str]:
        """Add a backend to a service; what is wrong with that, or nothing."""
        return list((await self.added(service, backend)).mistakes)

    async def remove(self, service: str, endpoint: Endpoint) -> list[str]:
        """Take a backend out of a service, as a reload would; what is wrong with that, or nothing."""
        return list((await self.remove_all([(service, endpoint)])).mistakes)

    async def added(self, service: str, backend: Backend) -> Outcome:
        """As `add`; all that came of it."""
        return await self._amend(
            lambda config: with_backend(config, service, backend),
            lambda overlay: overlay.adding(service, backend),
        )

    async def remove_all(self, keys: Sequence[BackendKey]) -> Outcome:
        """Take backends out of their services: all of them, or none."""

        def without(config: Config) -> Config:
            return reduce(lambda config, key: without_backend(config, *key), keys, config)

        def removing(overlay: Overlay) -> Overlay:
            return reduce(lambda overlay, key: overlay.removing(*key), keys, overlay)

        return await self._amend(without, removing)

    async def _amend(self, change: Callable[[Config], Config], note: Callable[[Overlay], Overlay]) -> Outcome:
        """Change what runs, and the overlay likewise."""
        async with self.lock:
            try:
                config = change(self.backends.services.config)
                return await self._take_over(config, note(self.backends.overlay))
            except MisfitError as misfit:
                return Outcome(mistakes=(str(misfit),))
            except RefusedError as refused:
                return Outcome(mistakes=tuple(refused.mistakes))

    async def _take_over(self, config: Config, overlay: Overlay) -> Outcome:
        outcome, planned = await self._compare(config)
        if outcome.needs_restart:
            kept = "; ".join(outcome.needs_restart)
            log.warning(event("restart-needed", settings=kept, effect="these keep their values"))
        if planned is not None:
            try:
                await self._run_with(self._possible(config), planned)
            except (TooLargeError, NetworkError, QueueError, StartError) as error:
                raise RefusedError(str(error)) from error
            set_level(config.log_level)
            self.checks.update(self.backends.targets())
            for change in outcome.changes:
                log.info(event("changed", what=change))
            log.info(event("reloaded", services=len(config.services), generation=self.publisher.generation))
        else:
            log.info(event("reloaded", changed="nothing"))
        self.backends.overlay = overlay
        await self._release_removed()
        self.backends.note()
        return outcome

    def _possible(self, config: Config) -> Config:
        """What of a configuration can be taken over without a restart."""
        before = self.backends.services.config
        return config.model_copy(update={key: getattr(before, key) for key in _FIXED})

    async def _foreseen(self, config: Config) -> Outcome:
        """What taking over a configuration changes, with where flows go. Raises RefusedError."""
        outcome, planned = await self._compare(config)
        if planned is None:
            return outcome
        before, after = self.backends.services, self.backends.imagined(self._possible(config))
        states = self.backends.imagined_states(after)
        try:
            foretold = await forecast(self.memory, self.sweeper, self.own, before, after, states)
        except SchedulerError as error:
            raise RefusedError(f"{error.place}: {error}") from error
        *lines, summary = outcome.changes
        changes = (*bounded([*lines, *forecast_lines(foretold)]), summary)
        return outcome.model_copy(update={"changes": changes})

    async def _compare(self, config: Config) -> tuple[Outcome, Planned | None]:
        """What taking over a configuration changes, and what it needs; None: nothing changes.

        Raises RefusedError.
        """
        before = self.backends.services
        needs_restart = tuple(settings(_FIXED, before.config, config))
        if (config := self._possible(config)) == before.config:
            return Outcome(needs_restart=needs_restart), None
        try:
            after = self.backends.imagined(config)
            planned = await self.network.planned(after)
        except (TooLargeError, NetworkError) as error:
            raise RefusedError(str(error)) from error
        flows = dict(enumerate(open_flows(self.memory).tolist()))
        *lines, summary = service_differences(before, after, flows)
        lines += [*self.backends.may_move(after), *self.network.differences(planned)]
        return Outcome(changes=(*bounded(lines), summary), needs_restart=needs_restart), planned

    async def _run_with(self, config: Config, planned: Planned) -> None:
        """Take over a configuration, for which this is planned.

        Raises TooLargeError, NetworkError, QueueError or StartError; then all is as it was.
        """
        before = self.backends.services
        after = self.backends.expand(config, before)
        moving: Moving = []
        try:
            await self.pool.grow(config)
            await self.changes.say_goodbye(self._served(before.part_of.keys() - after.part_of.keys()))
            self.backends.configure(after)
            moving = await self.changes.hold(before)
            await self.network.change(before, planned)
        except (NetworkError, QueueError, StartError):
            self.backends.configure(self.backends.expand(before.config, after))
            self.backends.stop(before.part_of, Stops.NOT)
            await self.publisher.publish(self.backends.fill)
            await self.changes.go_on(moving)
            await self.pool.shrink(before.config)
            raise
        except asyncio.CancelledError:
            # Who stops tells both ends of connections, and drops no words of theirs.
            self.backends.let_go()
            raise
        await self.changes.go_on(moving)
        await self.pool.shrink(config)

    def _served(self, backends: Iterable[int]) -> list[int]:
        """Those of the backends that have flows."""
        flows = open_flows(self.memory)
        return [number for number in backends if flows[number] > 0]

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
