"""The operator's words about backends, which hold until another one: also over a reload and a hand-over."""

import logging
import time
from collections.abc import Iterable, Mapping

from loaded_mp.control.commands import CommandError
from loaded_mp.fields import Endpoint
from loaded_mp.log import event
from loaded_mp.memory.snapshot import MAX_SLOTS
from loaded_mp.services import Services, most_slots
from loaded_mp.status import CheckStatus, Wanted
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.state import BackendState

log = logging.getLogger(__name__)

#: Of many the first are named.
_NAMED = 10


class Steering:
    """Finds backends by names and takes down what is wanted of them."""

    def __init__(self, backends: Backends, changes: Changes) -> None:
        self._backends = backends
        self._changes = changes

    def want(self, wanted: Wanted, backend: str, service: str | None) -> list[int]:
        """Want this of a backend; its ids. Raises CommandError if it is not clear which one is meant."""
        numbers = self.find(backend, service)
        for number in numbers:
            state = self._backends.states[number]
            if state.wanted is not wanted:
                state.wanted = wanted
                self._say(number, wanted)
        self._tell(numbers)
        return numbers

    def weigh(self, weight: int | None, backend: str, service: str | None) -> list[int]:
        """Give a backend a weight, None: the configured one; its ids. Raises CommandError, also for want of
        room for the weights of all.
        """
        numbers = self.find(backend, service)
        before = {number: self._backends.states[number].weight for number in numbers}
        for number in numbers:
            self._backends.states[number].weight = weight
        try:
            require_slots(self._backends.services, self._backends.states)
        except CommandError:
            for number, old in before.items():
                self._backends.states[number].weight = old
            raise
        for number in numbers:
            if before[number] != weight:
                self._say(number, "weight", weight="default" if weight is None else weight)
        self._tell(numbers)
        return numbers

    def checks(self, backend: str | None, service: str | None) -> list[CheckStatus]:
        """What the checks of a backend found the last time; None: of all. Raises CommandError."""
        found = self.find(backend, service) if backend is not None else self.within(service)
        return [each for number in found for each in self._checks(number)]

    def _checks(self, number: int) -> Iterable[CheckStatus]:
        part = self._backends.services.part_of[number]
        service, backend = self._backends.name(number)
        configured = part.backends[number]
        for check, each in self._backends.states[number].checks.items():
            asked = part.service.asked(check, configured)
            yield CheckStatus(
                service=service,
                backend=backend,
                address=str(configured.address),
                check=check.question(asked),
                up=each.health.up,
                passed=None if each.asked_s is None else each.finding.fault is None,
                said=each.finding.fault or each.finding.said,
                age_s=None if each.asked_s is None else time.monotonic() - each.asked_s,
                took_s=each.took_s,
                interval_s=check.interval_s,
            )

    def find(self, backend: str, service: str | None) -> list[int]:
        """The ids of a backend: a name may be that of one machine's addresses of both families.

        An address without a port is that of all backends there. Raises CommandError if there is none, or if
        it is not clear which one is meant.
        """
        found = self.named(backend, service)
        part_of = self._backends.services.part_of
        machines = {(part_of[number].id, self._backends.services.key(number)[1].ip) for number in found}
        services = {self._backends.name(number)[0] for number in found}
        if len(services) == 1 and len(machines) == len({part for part, _ in machines}):
            return found
        advice = "say its address" if len(services) == 1 else f"say of which service: -s {min(services)}"
        raise CommandError(f"{backend!r} may be {self._listed(found)}; {advice}")

    def named(self, backend: str, service: str | None) -> list[int]:
        """The ids of all backends with this name or address. Raises CommandError if there is none."""
        within = self.within(service)
        if found := [number for number in within if self._is_called(number, backend)]:
            return found
        raise CommandError(f"there is no backend {backend!r}; there are: {self._listed(within)}")

    def within(self, service: str | None) -> list[int]:
        """The ids of all backends of a service; None: of all services. Raises CommandError."""
        by_name = self._backends.services.by_name
        if service is None:
            return list(self._backends.services.part_of)
        if service not in by_name:
            raise CommandError(f"there is no service {service!r}; there are: {_some(by_name)}")
        return [number for part in by_name[service] for number in part.backends]

    def _is_called(self, number: int, word: str) -> bool:
        endpoint = self._backends.services.key(number)[1]
        if word == self._backends.name(number)[1]:
            return True
        try:
            asked = Endpoint.read(word)
        except ValueError:
            return False
        return asked.ip == endpoint.ip and asked.port in (None, endpoint.port)

    def _listed(self, numbers: Iterable[int]) -> str:
        return _some(
            f"{name} ({service}, {self._backends.services.part_of[number].backends[number].address})"
            for number in numbers
            for service, name in [self._backends.name(number)]
        )

    def _say(self, number: int, word: str, **more: object) -> None:
        service, backend = self._backends.name(number)
        address = self._backends.services.part_of[number].backends[number].address
        named = {"service": service, "backend": backend, "address": address}
        log.info(event(f"backend-{word}", **named, **more, cause="the operator's word"))

    def _tell(self, numbers: Iterable[int]) -> None:
        states = self._backends.states
        self._changes.tell(*(number for number in numbers if not states[number].usable))


def require_slots(services: Services, states: Mapping[int, BackendState]) -> None:
    """Raise CommandError unless workers have room for what schedulers make of these states."""
    slots = sum(
        most_slots(
            part.service,
            [states[number].effective_weight(each.weight) for number, each in part.backends.items()],
        )
        for part in services.parts
    )
    if slots > MAX_SLOTS:
        raise CommandError(
            f"workers have room for {MAX_SLOTS:,} scheduler slots, and that would take {slots:,}: use a"
            " smaller weight, or one that has a common divisor with the others of its service"
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
