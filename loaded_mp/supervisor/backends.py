"""The services and backends that run now: what is configured, what is known, what follows for workers."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from copy import copy, deepcopy
from pathlib import Path

from loaded_mp.checks.runner import Result, Target, Targets
from loaded_mp.config.model import Config, Service
from loaded_mp.config.saving import Unsaved
from loaded_mp.fields import Address, Endpoint
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Forwarding, Left, Place
from loaded_mp.log import event
from loaded_mp.memory.shared import CORES, SharedMemory
from loaded_mp.memory.snapshot import MAX_BEFORE, Snapshot
from loaded_mp.schedulers import is_own
from loaded_mp.schedulers.scheduler import Slots
from loaded_mp.services import Ids, Part, Services
from loaded_mp.supervisor.affinities import Affinities
from loaded_mp.supervisor.handover import Adopted, write_state
from loaded_mp.supervisor.overlay import Overlay
from loaded_mp.supervisor.quorum import Quorum
from loaded_mp.supervisor.service_state import ServiceState, judged, turns
from loaded_mp.supervisor.snapshots import Past, fill, slots_of
from loaded_mp.supervisor.state import BackendState, Change, Stops

log = logging.getLogger(__name__)

#: The connections of services, as these were.
Moving = list[tuple[Part, list[Left]]]


class Backends:
    """Everything by backend id."""

    def __init__(self, memory: SharedMemory, config: Config, adopted: Adopted | None = None) -> None:
        """Raises TooLargeError if workers have no room for the configuration."""
        self._memory = memory
        self.services = Services(config, ())
        self._ids = adopted.ids if adopted else Ids()
        self.states: dict[int, BackendState] = adopted.states if adopted else {}
        self._forwarding: dict[int, Forwarding] = dict.fromkeys(self.states, FORWARDINGS["rewrite"])
        self.affinities = Affinities(adopted.affinities if adopted else None)
        self._held: dict[int, Part] = {}  #: as they were, by service id
        self._running = self._ids.services.held()  #: services, by id
        self._service_states: dict[int, ServiceState] = {}  #: by service id
        self.quorum = Quorum()
        self.overlay = adopted.overlay if adopted else Overlay()  #: over what the configuration says
        self.tables: dict[int, Slots] = {}  #: what the operator's schedulers gave, by service id
        self.scheduler_faults: dict[int, str] = {}  #: why these give nothing now, by service id
        self.filled = asyncio.Event()  #: set with each buffer that is written
        ran = self._running
        self.configure(self._ids.expand(self.overlay.over(config)))
        if adopted:
            snapshot = memory.snapshots[int(memory.generation[0]) & 1]
            own = (part for part in self.services.parts if part.id in ran and is_own(part.service.scheduler))
            self.tables = {part.id: slots_of(snapshot, part.id).copy() for part in own}

    def expand(self, config: Config, before: Services) -> Services:
        """A configuration in the numbers of this daemon, which held `before`.

        Raises TooLargeError and then changes nothing.
        """
        return self._ids.expand(config, before)

    def unsaved(self, file: Path | None) -> Unsaved:
        """What people changed at run time; `file`: where the configuration comes from."""
        return Unsaved(
            file=file,
            added=tuple(
                (name, each) for (name, _), each in self.overlay.added.items() if not each.discovered
            ),
            removed=tuple(self.overlay.removed),
            weights=tuple(
                (part.service.name, part.backends[number].address, weight)
                for number, part in self.services.part_of.items()
                if (weight := self.states[number].weight) is not None and not part.backends[number].discovered
            ),
        )

    def imagined(self, config: Config) -> Services:
        """As `expand`, but no number is given out. Raises TooLargeError."""
        return deepcopy(self._ids).expand(config, self.services)

    def imagined_states(self, services: Services) -> dict[int, BackendState]:
        """What the states of these services' backends would be at first: copies, which nothing else reads."""
        states = {}
        for number, part in services.part_of.items():
            # A number that a removed backend has held may be another one's.
            known = self.states.get(number) if number in self.services.part_of else None
            states[number] = copy(known) if known else _first_state(part.service, part.id in self._running)
            states[number].follow(part.service)
        return states

    def configure(self, services: Services) -> None:
        """Let these be the services."""
        self.services = services
        self.affinities.follow(services.parts)
        for number in services.part_of.keys() - self.states.keys():
            part = services.part_of[number]
            self.states[number] = _first_state(part.service, part.id in self._running)
            self._memory.backends[: self._memory.rows[0], number] = 0
            self._memory.kernel_backends[:CORES, number] = 0
            self._memory.active[:, number] = 0
            self._memory.full[number] = 0
        for number, part in self.services.part_of.items():
            self._forwarding[number] = FORWARDINGS[part.service.forwarding]
            self.states[number].follow(part.service)
        self._running = {part.id for part in services.parts}
        self._service_states = {
            number: each for number, each in self._service_states.items() if number in self._running
        }
        own = {part.id for part in services.parts if is_own(part.service.scheduler)}
        self.tables = {number: each for number, each in self.tables.items() if number in own}
        self.scheduler_faults = {n: each for n, each in self.scheduler_faults.items() if n in own}
        self._judge_all()

    def may_move(self, after: Services) -> Iterator[str]:
        """What of living flows workers would not find any more."""
        for part in self.affinities.too_many(after.parts):
            place = f"service {part.service.name}: IPv{part.family}"
            yield f"{place} flows from before its last {MAX_BEFORE} changes of affinity move"

    def note(self) -> None:
        """Write down what the next supervisor has to know."""
        write_state(self._memory, self._ids, self.states, self.overlay, self.affinities)

    def fill(self, snapshot: Snapshot) -> None:
        """Write the present state into a buffer that nobody reads."""
        self._judge_all()
        past = Past(self.affinities.successions, self._held, self._vips_left(), self.tables)
        fill(snapshot, self.services.parts, self.states, past)
        self.filled.set()

    def targets(self) -> Targets:
        """What is to be checked."""
        return [
            Target(number, part.service.asked(check, backend), check)
            for part in self.services.parts
            for number, backend in part.backends.items()
            for check in part.service.checks
        ]

    def heard(self, result: Result) -> Change | None:
        """Take note of a check's result; what changed by it."""
        if result.backend not in self.services.part_of:
            return None
        change = self.states[result.backend].heard(result)
        if change:
            self._judge(self.services.part_of[result.backend])
        return change

    @property
    def rise(self) -> bool:
        """Whether the weight of some backend rises by itself."""
        return any(state.risen < 1 for state in self.states.values())

    def _judge_all(self) -> None:
        for part in self.services.parts:
            self._judge(part)

    def _judge(self, part: Part) -> None:
        """Let a service know what its backends are, and say what has turned by that."""
        before = self._service_states.get(part.id, ServiceState())
        self._service_states[part.id] = after = judged(part, self.states)
        for turn in turns(part, before, after):
            log.log(
                logging.INFO if turn.good else logging.ERROR,
                event(turn.name, service=part.service.name, family=f"IPv{part.family}", effect=turn.effect),
            )
        if after.quorum is not None and after.quorum is not before.quorum:
            self.quorum.tell(part, after.quorum)

    def _vips_left(self) -> dict[int, Address]:
        """Those of services that are gone, by VIP id."""
        mine = {number for part in self.services.parts for number in part.vips}
        return {number: vip for (_, vip), number in self._ids.vips.items() if number not in mine}

    def fault(self, service: str, endpoint: Endpoint) -> str | None:
        """Why a backend of a service is down; None: it is up, or there is none."""
        for part in self.services.by_name.get(service, ()):
            for number, backend in part.backends.items():
                if backend.address == endpoint and not (state := self.states[number]).up:
                    return state.cause
        return None

    def full(self, number: int) -> str:
        """Why a backend gets no new flows, if that is because of those that it has."""
        limits = self.services.part_of[number].backends[number].limits
        if not limits or not self._memory.full[number]:
            return ""
        _, fewest = limits
        return f"full until it has fewer than {fewest:,} flows" if self.flows(number) >= fewest else ""

    def flows(self, number: int) -> int:
        """How many flows a backend has now."""
        rows = self._memory.active[: self._memory.rows[0], number]
        return max(0, int(rows.sum() + self._memory.active[-1, number]))

    def name(self, number: int) -> tuple[str, str]:
        """Names of the service and of the backend with this id."""
        part = self.services.part_of[number]
        backend = part.backends[number]
        return part.service.name, backend.name or str(backend.address)

    def stop(self, numbers: Iterable[int], stops: Stops) -> None:
        """Let this be done about the TCP connections of these backends."""
        for number in numbers:
            self.states[number].stops = stops

    def hold(self, before: Services) -> None:
        """Drop what is under way in services with another way of forwarding than before, until `let_go`."""
        self._held = {part.id: part for part in before.parts if self._way(part) != part.service.forwarding}

    @property
    def holds(self) -> bool:
        """Whether packets are dropped for that."""
        return bool(self._held)

    def let_go(self) -> None:
        """Drop none any more."""
        self._held = {}

    def moving(self) -> Moving:
        """The connections of those that are held. Raises NetworkError."""
        return [
            (part, FORWARDINGS[part.service.forwarding].known(_place(part))) for part in self._held.values()
        ]

    def leave(self) -> None:
        """Let the old way of forwarding let go of them. Raises NetworkError."""
        for part in self._held.values():
            FORWARDINGS[part.service.forwarding].leave(_place(part))

    def take_over(self, moving: Moving) -> None:
        """Go on with connections in the present way of forwarding. Raises NetworkError."""
        for before, left in moving:
            part = self.services.by_id[before.id]
            FORWARDINGS[part.service.forwarding].take_over(_place(part), left)

    def _way(self, part: Part) -> str:
        return self.services.by_id.get(part.id, part).service.forwarding

    def forget_connections(self, number: int) -> None:
        """Let go of the connections that others than workers hold for a backend. Raises NetworkError."""
        self._forwarding[number].forget(number)

    def removed(self) -> list[int]:
        """Backend ids that flows may still hold although the configuration has them no more."""
        return sorted(self._ids.backends.held() - self.services.part_of.keys())

    def release(self, number: int) -> None:
        """Let a removed id be used again; no entry may hold it any more."""
        self._ids.backends.release(number)
        self.states.pop(number, None)
        self._forwarding.pop(number, None)

    def release_services(self) -> None:
        """Let the ids of removed services and VIPs be used again, once all of `removed` is released.

        Those of VIPs are not given to others at once: connections are told by them.
        """
        for number in self._ids.services.held() - {part.id for part in self.services.parts}:
            self._ids.services.release(number)
        for number in self._vips_left():
            self._ids.vips.retire(number)


def _first_state(service: Service, runs: bool) -> BackendState:
    """Of a backend that nothing is known of; `runs`: its service does already."""
    initial = service.initial or ("down" if runs else "up")
    if initial == "down" and service.checks:
        return BackendState(up=False, cause="not checked yet", slow=runs)
    return BackendState(slow=runs)


def _place(part: Part) -> Place:
    endpoints = {number: backend.address for number, backend in part.backends.items()}
    return Place(part.family, part.vips, endpoints, part.service.ports)
