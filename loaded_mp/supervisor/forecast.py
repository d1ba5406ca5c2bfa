"""What would become of flows, open and new, with other services than those that run.

The flows that would move are read from the flow table, and for each a backend is picked by the function that
workers pick with, in an imagined snapshot. Nothing that anybody else reads is changed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import lcm

import numpy as np
import numpy.typing as npt

from loaded_mp.config.model import Backend
from loaded_mp.datapath.locality import copy_homes
from loaded_mp.datapath.picks import pick_all
from loaded_mp.datapath.work import Work, work_of
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.table import MAX_VALUE, FlowTable, Row, new_table, read
from loaded_mp.memory.shared import SharedMemory, open_flows
from loaded_mp.memory.snapshot import Flag, Pick, ServiceColumn, Snapshot, new_snapshot
from loaded_mp.packet.address import address128
from loaded_mp.services import Part, Services
from loaded_mp.status import TRIED_FLOWS, Forecast, MoveStatus, ServiceForecast, SpreadStatus
from loaded_mp.supervisor.fates import Fate, fates
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.service_state import States, judged
from loaded_mp.supervisor.snapshots import Past, fill, slots_of
from loaded_mp.supervisor.sweep import Sweeper

#: Entries looked at in one go, and slots that may be compared for the flows in them: a few milliseconds.
_PIECE, _SLOTS = 1 << 13, 1 << 21
#: The share of a service's slots does not depend on open flows.
_BY_SLOTS = (Pick.NEXT, Pick.HASH)
#: Nor does who gets the next flow.
_WITHOUT_FLOWS = (*_BY_SLOTS, Pick.DESTINATION, Pick.FIRST)
#: It depends on which backends destinations have already.
_BY_HOME = (Pick.LOCAL, Pick.REPLICATED)
_MOST_HOMES = 1 << 16
_MOST_HASHES = 1 << 18
_KEEPS = {"tcp": Flag.KEEP_TCP, "udp": Flag.KEEP_UDP}
_KEEPS_ALL = Flag.KEEP_TCP | Flag.KEEP_UDP | Flag.KEEP_OTHER

Longs = npt.NDArray[np.int64]


async def forecast(
    memory: SharedMemory,
    sweeper: Sweeper,
    own: OwnSchedulers,
    before: Services,
    after: Services,
    states: States,
) -> Forecast:
    """What the services `after`, whose backends are in these states, would make of the flows that are open.

    `before` are those that run. Services for which nothing changes are left out. The states take note of
    what the other backends of their service mean for them.
    """
    for each in after.parts:
        judged(each, states)
    snapshot = new_snapshot()
    fill(snapshot, after.parts, states, Past(tables=await own.imagined(before, after, states)))
    now = _imagined(memory, memory.snapshots[int(memory.generation[0]) & 1], before)
    then = _imagined(memory, snapshot, after)
    stay = _staying(before, now.snapshot)
    fate = fates(before, after, stay - _staying(after, snapshot))
    moving = [number for number, each in fate.items() if each is Fate.MOVE]
    open_now = np.maximum(open_flows(memory), 0)
    moves = _Moves(memory.table, then, after, {number: before.part_of[number].id for number in moving})
    if open_now[moving].any():
        await sweeper.once(moves, moves.piece)
    told = []
    for was, part in _pairs(before, after):
        view = _View(was, part, now, then, open_now, moves.counts)
        if view.changes:
            told.append(view.told(fate, stay))
    return Forecast(
        moves=sum(each.flows for service in told for each in service.moves),
        ends=sum(each.ends for each in told),
        services=tuple(told),
    )


def _imagined(memory: SharedMemory, snapshot: Snapshot, services: Services) -> Work:
    """The work of a worker of whom nobody else sees anything."""
    # Compiled code cannot hand a part of an array to Python.
    work: Work = getattr(work_of, "py_func", work_of)(memory, 0, 0)
    imagined = work._replace(
        snapshot=snapshot,
        table=new_table(_MOST_HOMES, memory.table.secret),
        cursors=memory.cursors.copy(),
        active=open_flows(memory).reshape(1, -1),
        full=memory.full.copy(),
        table_counted=work.table_counted.copy(),
        rows=0,
    )
    for part in services.parts:
        if _pick(snapshot, part) in _BY_HOME:
            copy_homes(work, part.id, _vips(part), imagined.table)
    return imagined


def _staying(services: Services, snapshot: Snapshot) -> set[int]:
    """The backends whose flows stay there, those included that `on_down` lets keep all that is answered."""
    staying = set()
    for part in services.parts:
        keeps = 0 if part.service.listen else _KEEPS_ALL
        for listener in part.service.listen:
            keeps |= _KEEPS.get(listener.protocol, Flag.KEEP_OTHER)
        for number in part.backends:
            flags = int(snapshot.backend_flags[number])
            if flags & Flag.USABLE or flags & keeps == keeps:
                staying.add(number)
    return staying


def _pairs(before: Services, after: Services) -> Iterator[tuple[Part | None, Part | None]]:
    """Each part as it was and as it would be."""
    for part in after.parts:
        yield before.by_id.get(part.id), part
    for part in before.parts:
        if part.id not in after.by_id:
            yield part, None


def new_flows(work: Work, service: int, clients: Words, vips: Words) -> Longs:
    """The backend ids that so many new flows get one after the other; -1: none. See `pick_all`."""
    picked = np.empty(len(clients), np.int64)
    pick_all(work, service, np.ascontiguousarray(clients), np.ascontiguousarray(vips), picked)
    return picked


class _Moves:
    """Where the flows of some backends would go."""

    def __init__(self, table: FlowTable, work: Work, after: Services, moving: Mapping[int, int]) -> None:
        """`moving`: the service id of each of the backends."""
        self._table = table
        self._work = work
        self._wanted = np.zeros(MAX_VALUE + 1, np.bool_)
        self._wanted[list(moving)] = True
        self._services = np.full(MAX_VALUE + 1, -1, np.int64)
        self._services[list(moving)] = list(moving.values())
        self._vips = {number: _vips(after.by_id[number]) for number in set(moving.values())}
        slots = max((work.snapshot.services[n][ServiceColumn.SLOTS] for n in self._vips), default=0)
        self.piece = max(64, min(_PIECE, _SLOTS // max(1, int(slots))))
        self._rows = np.zeros((self.piece, len(Row)), np.uint64)
        self.counts: Counter[tuple[int, int]] = Counter()  #: by backend id, before and then; -1: none

    def begin(self) -> None:
        """Nothing is to be done."""

    def visit(self, start: int, stop: int) -> None:
        """Pick a backend for each flow that would move."""
        rows = self._rows[: read(self._table, start, stop, self._wanted, self._rows)]
        held = rows[:, Row.VALUE].astype(np.int64)
        services = self._services[held]
        for service in np.unique(services).tolist():
            mine, vips = services == service, self._vips[service]
            clients = rows[mine, Row.HIGH : Row.LOW + 1]
            turns = (rows[mine, Row.ENTRY] % np.uint64(len(vips))).astype(np.int64)
            picked = new_flows(self._work, service, clients, vips[turns])
            self.counts.update(zip(held[mine].tolist(), picked.tolist(), strict=True))

    def end(self) -> None:
        """Nothing is to be done."""


def _vips(part: Part) -> Words:
    """uint64[n, 2]."""
    return np.array([address128(vip) for vip in part.vips.values()], np.uint64)


@dataclass(frozen=True)
class _View:
    """A part as it is and as it would be; None: it is not there."""

    was: Part | None
    part: Part | None
    now: Work
    then: Work
    open_now: Longs  #: flows by backend id
    counts: Mapping[tuple[int, int], int]  #: flows that would move, by backend ids

    @property
    def changes(self) -> bool:
        """Whether flows, open or new, have something else to expect."""
        if self.was is None or self.part is None or self.moved:
            return True
        return _picking(self.now.snapshot, self.was) != _picking(self.then.snapshot, self.part)

    @property
    def moved(self) -> dict[tuple[int, int], int]:
        """How many flows would move, by backend ids."""
        mine = self.was.backends if self.was else {}
        return {pair: count for pair, count in sorted(self.counts.items()) if pair[0] in mine}

    def told(self, fate: Mapping[int, Fate], stay: Iterable[int]) -> ServiceForecast:
        """What changes, for people."""
        some = self.part or self.was
        assert some
        backends = {**(self.was.backends if self.was else {}), **(self.part.backends if self.part else {})}
        there = [] if self.part is None else list(self.part.backends)
        was = [] if self.was is None else list(self.was.backends)
        then = {number: int(self.open_now[number]) if number in was else 0 for number in there}
        for (number, to), count in self.moved.items():
            if number in then:
                then[number] -= count
            if to in then:
                then[to] += count
        shares_now = _shares(self.now, self.was) if self.was else {}
        shares_then = _shares(self.then, self.part) if self.part else {}
        return ServiceForecast(
            service=some.service.name,
            family=some.family,
            stays=bool(self.was and self.part),
            scheduler=some.service.scheduler,
            moves=tuple(
                MoveStatus(**_named("", backends[number]), **_named("to_", backends.get(to)), flows=count)
                for (number, to), count in self.moved.items()
            ),
            ends=sum(int(self.open_now[number]) for number in was if fate.get(number) is Fate.END),
            homeless=sum(
                int(self.open_now[number]) for number in was if number not in fate and number not in stay
            ),
            exact=self._picks(self.then, Pick.HASH) or len(there) == 1,
            by_open_flows=self.part is not None and not self._picks(self.then, *_WITHOUT_FLOWS),
            elsewhere=self._elsewhere(),
            spread=tuple(
                SpreadStatus(
                    name=each.name or str(each.address),
                    address=str(each.address),
                    flows=int(self.open_now[number]) if number in was else None,
                    flows_then=then.get(number),
                    share=shares_now.get(number, 0.0) if number in was else None,
                    share_then=shares_then.get(number, 0.0) if number in then else None,
                )
                for number, each in backends.items()
            ),
        )

    def _picks(self, work: Work, *picks: Pick) -> bool:
        return self.part is not None and _pick(work.snapshot, self.part) in picks

    def _elsewhere(self) -> float | None:
        """The share of clients whose backend, by their hash, would be another; None: no hash says."""
        if self.was is None or self.part is None:
            return None
        if (_pick(self.now.snapshot, self.was), _pick(self.then.snapshot, self.part)) != (Pick.HASH,) * 2:
            return None
        one, other = slots_of(self.now.snapshot, self.was.id), slots_of(self.then.snapshot, self.part.id)
        if not (one.size and other.size):
            return float(one.size != other.size)
        hashes = np.arange(min(lcm(one.size, other.size), _MOST_HASHES))
        return float(np.mean(one[hashes % one.size] != other[hashes % other.size]))


def _named(prefix: str, backend: Backend | None) -> dict[str, str]:
    if backend is None:
        return {f"{prefix}backend": "", f"{prefix}address": ""}
    address = str(backend.address)
    return {f"{prefix}backend": backend.name or address, f"{prefix}address": address}


def _pick(snapshot: Snapshot, part: Part) -> int:
    return int(snapshot.services[part.id][ServiceColumn.PICK])


def _picking(snapshot: Snapshot, part: Part) -> object:
    """All that says who gets new flows."""
    row = snapshot.services[part.id]
    weights = {number: int(snapshot.backend_weights[number]) for number in part.backends}
    how = [int(row[each]) for each in (ServiceColumn.PICK, ServiceColumn.PLUS, ServiceColumn.WEIGHTED)]
    return weights, how, slots_of(snapshot, part.id).tobytes()


def _shares(work: Work, part: Part) -> dict[int, float]:
    """The share of new flows by backend id. The flows that this tries are open in `work` from then on."""
    if _pick(work.snapshot, part) in _BY_SLOTS and not part.service.limits_flows:
        picked = slots_of(work.snapshot, part.id).astype(np.int64)
    else:
        by_vip = _pick(work.snapshot, part) == Pick.DESTINATION
        tried = len(part.vips) if by_vip else TRIED_FLOWS
        clients = np.random.default_rng(1).integers(0, 1 << 64, (tried, 2), np.uint64)
        picked = new_flows(work, part.id, clients, np.resize(_vips(part), (tried, 2)))
    numbers, counts = np.unique(picked, return_counts=True)
    return {
        number: count / len(picked)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        if number >= 0
    }
