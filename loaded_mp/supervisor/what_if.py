"""What would become of flows if an operator said this or that; nothing is changed by asking."""

from collections.abc import Mapping, Sequence

from loaded_mp.config.model import Backend, Config
from loaded_mp.control.commands import CommandError
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.own_scheduler.asking import SchedulerError
from loaded_mp.services import TooLargeError
from loaded_mp.status import Forecast
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.forecast import forecast
from loaded_mp.supervisor.overlay import MisfitError, with_backend, without_backend
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.state import BackendState
from loaded_mp.supervisor.steering import Steering, require_slots
from loaded_mp.supervisor.sweep import Sweeper


class WhatIf:
    """Answers by services and states that are imagined."""

    def __init__(
        self,
        memory: SharedMemory,
        backends: Backends,
        steering: Steering,
        sweeper: Sweeper,
        own: OwnSchedulers,
    ) -> None:
        self._memory = memory
        self._backends = backends
        self._steering = steering
        self._sweeper = sweeper
        self._own = own

    async def asked(
        self,
        weights: Mapping[str, int],
        without: Sequence[str],
        add: Sequence[Backend],
        scheduler: str | None,
        service: str | None,
    ) -> Forecast:
        """What would become of flows with these weights, without some backends, with others, with another
        scheduler: all at once. What would join counts as up.

        No reload may happen meanwhile. Raises CommandError.
        """
        if not (weights or without or add or scheduler):
            raise CommandError("what if what? Say a weight, whom to leave out or to add, or a scheduler")
        weighed = {n: weight for name, weight in weights.items() for n in self._steering.find(name, service)}
        gone = {n for name in without for n in self._steering.named(name, service)}
        config = self._backends.services.config
        try:
            for each in add:
                config = with_backend(config, self._one(service), each)
            for number in gone:
                config = without_backend(config, *self._backends.services.key(number))
            if scheduler:
                config = _with_scheduler(config, self._one(service), scheduler)
            after = self._backends.imagined(config)
        except (MisfitError, TooLargeError) as error:
            raise CommandError(str(error)) from error
        states = self._backends.imagined_states(after)
        for number in states.keys() - self._backends.services.part_of.keys():
            states[number] = BackendState()
        for number in weighed.keys() & states.keys():
            states[number].weight = weighed[number]
        require_slots(after, states)
        before = self._backends.services
        try:
            return await forecast(self._memory, self._sweeper, self._own, before, after, states)
        except SchedulerError as error:
            raise CommandError(f"{error.place}: {error}") from error

    def _one(self, service: str | None) -> str:
        """The service that is meant. Raises CommandError if that is not clear."""
        names = [*self._backends.services.by_name]
        if service is None and len(names) > 1:
            raise CommandError(f"say of which service: -s {names[0]}")
        self._steering.within(service)
        return names[0] if service is None else service


def _with_scheduler(config: Config, name: str, scheduler: str) -> Config:
    services = (
        each.model_copy(update={"scheduler": scheduler}) if each.name == name else each
        for each in config.services
    )
    return config.model_copy(update={"services": tuple(services)})
