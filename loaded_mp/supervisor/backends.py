"""The services and backends that run now: what is configured, what is known, what follows for workers."""

from collections.abc import Collection

from loaded_mp.checks.runner import Result, Target, Targets
from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.balance import REPLY
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Forwarding
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.memory.snapshot import Snapshot
from loaded_mp.services import Ids, Services
from loaded_mp.supervisor.handover import Adopted, write_state
from loaded_mp.supervisor.snapshots import fill
from loaded_mp.supervisor.state import BackendState, Change


class Backends:
    """Everything by backend id."""

    services: Services

    def __init__(self, memory: SharedMemory, config: Config, adopted: Adopted | None = None) -> None:
        """Raises TooLargeError if workers have no room for the configuration."""
        self._memory = memory
        self._ids = adopted.ids if adopted else Ids()
        self.states: dict[int, BackendState] = adopted.states if adopted else {}
        self._forwarding: dict[int, Forwarding] = dict.fromkeys(self.states, FORWARDINGS["rewrite"])
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over a configuration. Raises TooLargeError and then changes nothing."""
        running = {name for (name, _), _ in self._ids.services.items()}
        self.services = self._ids.expand(config)
        for number in self._ids.backends.held() - self.states.keys():
            self.states[number] = _first_state(self.services.part_of[number].service, running)
            self._memory.backends[:, number] = 0
            self._memory.active[:, number] = 0
        for number, part in self.services.part_of.items():
            self._forwarding[number] = FORWARDINGS[part.service.forwarding]
            self.states[number].follow(part.service.checks, part.service.checks_needed)

    def note(self) -> None:
        """Write down what the next supervisor has to know."""
        write_state(self._memory, self._ids, self.states)

    def fill(self, snapshot: Snapshot) -> None:
        """Write the present state into a buffer that nobody reads."""
        fill(snapshot, self.services.parts, self.states)

    def targets(self) -> Targets:
        """What is to be checked."""
        return [
            Target(number, check.address or backend.check_address or backend.address, check)
            for part in self.services.parts
            for number, backend in part.backends.items()
            for check in part.service.checks
        ]

    def heard(self, result: Result) -> Change | None:
        """Take note of a check's result; what changed by it."""
        return self.states[result.backend].heard(result) if result.backend in self.services.part_of else None

    def name(self, number: int) -> tuple[str, str]:
        """Names of the service and of the backend with this id."""
        part = self.services.part_of[number]
        backend = part.backends[number]
        return part.service.name, backend.name or str(backend.address)

    def forget_connections(self, number: int) -> None:
        """Let go of the connections that others than workers hold for a backend. Raises NetworkError."""
        self._forwarding[number].forget(number)

    def removed(self) -> list[int]:
        """Values that flows may still hold although the configuration has them no more."""
        vips = {number for part in self.services.parts for number in part.vips}
        return [
            *(self._ids.backends.held() - self.services.part_of.keys()),
            *(REPLY + number for number in self._ids.vips.held() - vips),
        ]

    def release(self, value: int) -> None:
        """Let a removed id be used again; no entry may hold it any more."""
        if value >= REPLY:
            self._ids.vips.release(value - REPLY)
        else:
            self._ids.backends.release(value)
            del self.states[value], self._forwarding[value]

    def release_services(self) -> None:
        """Let the ids of removed services be used again, once all of `removed` is released."""
        for number in self._ids.services.held() - {part.id for part in self.services.parts}:
            self._ids.services.release(number)


def _first_state(service: Service, running: Collection[str]) -> BackendState:
    """Of a backend that nothing is known of; `running` are the names of the services that run already."""
    initial = service.initial or ("down" if service.name in running else "up")
    if initial == "down" and service.checks:
        return BackendState(up=False, cause="not checked yet")
    return BackendState()
