"""Looking into the flow table, and moving flows by the operator's word."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network

import numpy as np
import numpy.typing as npt

from loaded_mp.control.commands import MOST_FLOWS, CommandError
from loaded_mp.datapath.affinity import NUMBERS, numbers_of, ports_in
from loaded_mp.fields import Address, Network, protocol_name
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.table import MAX_VALUE, FlowTable, Row, read, replace
from loaded_mp.log import event
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.memory.snapshot import MAX_BACKENDS
from loaded_mp.packet.address import Address128, address128, ip_of
from loaded_mp.services import Part
from loaded_mp.status import FlowsStatus, FlowStatus
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.steering import Steering
from loaded_mp.supervisor.sweep import Sweeper

log = logging.getLogger(__name__)

#: Entries looked at in one go: less than a millisecond, also where each holds a flow.
_PIECE = 1 << 13
#: How often flows are moved anew because workers changed them at the same moment.
_TRIES = 4
_64_BITS = (1 << 64) - 1

#: How many bits of a client's address tell flows apart, by backend id and the number of the affinity.
Prefixes = Mapping[int, Mapping[int, int]]


class OpenFlows:
    """Answers from the flow table."""

    def __init__(
        self, memory: SharedMemory, backends: Backends, steering: Steering, sweeper: Sweeper
    ) -> None:
        self._memory = memory
        self._backends = backends
        self._steering = steering
        self._sweeper = sweeper

    async def listed(
        self, source: Network | None, backend: str | None, service: str | None, most: int
    ) -> FlowsStatus:
        """How many there are, and at most so many of them. Raises CommandError."""
        found = self._steering.within(service) if backend is None else self._steering.named(backend, service)
        reading = Read(self._memory.table, self._prefixes(found), source, most)
        await self._sweeper.once(reading, _PIECE)
        now_s = int(time.monotonic())
        flows = sorted(self._flows(reading.kept, now_s), key=_place)
        return FlowsStatus(total=reading.total, flows=tuple(flows))

    async def move(self, source: Address, backend: str, service: str | None) -> FlowsStatus:
        """Let all flows of a source in the services of a backend go there; what they are then.

        Raises CommandError.
        """
        to = self._targets(backend, service)
        within = [number for part in to for number in self._backends.services.by_id[part].backends]
        only = ip_network(source)
        for _ in range(_TRIES):
            reading = Read(self._memory.table, self._prefixes(within), only, MOST_FLOWS)
            await self._sweeper.once(reading, _PIECE)
            if not reading.total:
                raise CommandError(f"{source} has no flow that could go to {backend}: nothing is moved")
            moved = [self._move(row, to) for row in reading.kept]
            if all(moved):
                break
        return await self.listed(only, None, service, MOST_FLOWS)

    def _prefixes(self, numbers: Iterable[int]) -> Prefixes:
        """Of the flows of these backends."""
        return {number: self._prefix_by_number(self._backends.services.part_of[number]) for number in numbers}

    def _prefix_by_number(self, part: Part) -> dict[int, int]:
        succession = self._backends.affinities.successions[part.id]
        return {each.number: each.affinity.prefix(part.family) for each in succession}

    def _targets(self, backend: str, service: str | None) -> dict[int, int]:
        """The backend id to which flows go, by the id of their service."""
        to: dict[int, int] = {}
        for number in self._steering.named(backend, service):
            part = self._backends.services.part_of[number]
            if to.setdefault(part.id, number) != number:
                raise CommandError(
                    f"{backend!r} is several in {part.service.name}; say one by address and port"
                )
            state = self._backends.states[number]
            if not state.usable:
                why = state.left_out(part.backends[number].weight)
                raise CommandError(f"{backend} is not usable ({why}): its flows would move on at once")
        return to

    def _move(self, row: Words, to: dict[int, int]) -> bool:
        """Whether a flow is where it shall be. It is not if a worker changed it at the same moment."""
        before = int(row[Row.VALUE])
        part = self._backends.services.part_of.get(before)
        after = to.get(part.id, before) if part else before
        if after == before:
            return True
        if not replace(self._memory.table, int(row[Row.ENTRY]), row[Row.WORD], after):
            return False
        self._memory.active[-1, before] -= 1
        self._memory.active[-1, after] += 1
        service, backend = self._backends.name(after)
        named = {"service": service, "backend": backend, "source": _source(row)}
        log.info(event("flow-moved", **named, cause="the operator's word"))
        return True

    def _flows(self, rows: Iterable[Words], now_s: int) -> Iterator[FlowStatus]:
        for row in rows:
            number = int(row[Row.VALUE])
            part = self._backends.services.part_of.get(number)
            if part is None:  # a reload took it away meanwhile
                continue
            service, backend = self._backends.name(number)
            left_s = int(row[Row.DEADLINE_S]) - now_s
            (affinity,) = numbers_of(row[[Row.SCOPE]]).tolist()
            connection = ports_in(int(row[Row.SCOPE]))
            ports = connection if connection and connection.client_port else None
            yield FlowStatus(
                service=service,
                source=_shown(_source(row), self._prefix_by_number(part).get(affinity)),
                protocol=protocol_name(connection.protocol) if connection else "",
                source_port=ports and ports.client_port,
                port=ports and ports.service_port,
                backend=backend,
                address=str(part.backends[number].address),
                left_s=max(0, left_s),
                confirmed=left_s > part.service.unconfirmed_s or None,
            )


class Read:
    """Reads the flows of some backends, and of a source."""

    def __init__(self, table: FlowTable, prefixes: Prefixes, source: Network | None, most: int) -> None:
        """`prefixes`: of the wanted backends."""
        self._table = table
        self._wanted = np.zeros(MAX_VALUE + 1, np.bool_)
        self._wanted[list(prefixes)] = True
        self._prefix = np.zeros((MAX_BACKENDS, NUMBERS), np.int64)
        for backend, by_number in prefixes.items():
            self._prefix[backend, list(by_number)] = list(by_number.values())
        self._prefixes = {each for by_number in prefixes.values() for each in by_number.values()}
        self._source = source
        self._most = most
        self._rows = np.zeros((_PIECE, len(Row)), np.uint64)
        self.total = 0  #: how many there are
        self.kept: list[Words] = []  #: the first of them

    def begin(self) -> None:
        """Nothing is to be done."""

    def visit(self, start: int, stop: int) -> None:
        """Read those that are there."""
        rows = self._rows[: read(self._table, start, stop, self._wanted, self._rows)]
        if self._source is not None:
            rows = rows[self._are_of(self._source, rows)]
        self.total += len(rows)
        self.kept += [row.copy() for row in rows[: self._most - len(self.kept)]]

    def end(self) -> None:
        """Nothing is to be done."""

    def _are_of(self, source: Network, rows: Words) -> npt.NDArray[np.bool_]:
        """Which of the rows are flows of a source; a flow may be that of the network around it."""
        are = np.zeros(len(rows), np.bool_)
        prefixes = self._prefix[rows[:, Row.VALUE].astype(np.int64), numbers_of(rows[:, Row.SCOPE])]
        for prefix in self._prefixes:
            if prefix <= source.max_prefixlen:
                around = source if prefix >= source.prefixlen else source.supernet(new_prefix=prefix)
                are |= (prefixes == prefix) & _within(rows, around)
        return are


def _within(rows: Words, source: Network) -> npt.NDArray[np.bool_]:
    """Which of the rows are flows of addresses in a network."""
    wanted = address128(source.network_address)
    mask = (1 << 128) - source.num_addresses
    same: npt.NDArray[np.bool_] = (rows[:, Row.HIGH] & np.uint64(mask >> 64) == wanted.high) & (
        rows[:, Row.LOW] & np.uint64(mask & _64_BITS) == wanted.low
    )
    return same


def _place(flow: FlowStatus) -> tuple[str, str, str, int]:
    """Where it stands in a list."""
    return flow.service, flow.source, flow.protocol, flow.source_port or 0


def _shown(source: Address, prefix: int | None) -> str:
    """A client, or the network of clients that share a flow."""
    return str(source) if prefix in (None, source.max_prefixlen) else f"{source}/{prefix}"


def _source(row: Words) -> Address:
    return ip_of(Address128(row[Row.HIGH], row[Row.LOW]))
