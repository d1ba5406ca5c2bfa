"""The affinities that services have, and those that they had as long as some flow is of one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

import numpy as np

from loaded_mp.config.model import ClientAffinity
from loaded_mp.datapath.affinity import NUMBERS, owners_of
from loaded_mp.flows.table import MAX_VALUE, FlowTable, Row, read
from loaded_mp.memory.snapshot import CLOSING, MAX_BACKENDS, MAX_BEFORE
from loaded_mp.services import Family, Part


class Numbered(NamedTuple):
    """An affinity of a service, and the number that its flows have in their scope."""

    number: int
    affinity: ClientAffinity


#: Of one service: the oldest first, last the one that it has.
Succession = tuple[Numbered, ...]


class Affinities:
    """Those of all services, by service id."""

    def __init__(self, noted: Mapping[int, Succession] | None = None) -> None:
        self.successions: dict[int, Succession] = dict(noted or {})

    def follow(self, parts: Iterable[Part]) -> None:
        """Let services have the affinities that they say."""
        self.successions = {part.id: self._following(part)[-MAX_BEFORE - 1 :] for part in parts}

    def before(self) -> set[tuple[int, int]]:
        """Service ids and numbers of the affinities that services had."""
        return {(service, each.number) for service, all_ in self.successions.items() for each in all_[:-1]}

    def forget(self, over: Collection[tuple[int, int]]) -> None:
        """Forget those from before of which there is no flow any more: service ids and numbers."""
        self.successions = {
            service: (*(each for each in before if (service, each.number) not in over), last)
            for service, (*before, last) in self.successions.items()
        }

    def too_many(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Those of which one that still has flows would be forgotten if they were followed."""
        for part in parts:
            if len(self._following(part)) > MAX_BEFORE + 1:
                yield part

    def _following(self, part: Part) -> Succession:
        """What a part has and had with the affinity that it says, however many these are."""
        known, affinity = self.successions.get(part.id, ()), part.service.affinity
        if not known:
            return (Numbered(0, affinity),)
        *before, last = known
        if _same(last.affinity, affinity, part.family):
            return known
        if last.affinity.kind != "none":  # there are no flows of that
            before.append(last)
        by_connection = affinity.kind == "connection"
        alike = [each for each in before if (each.affinity.kind == "connection") == by_connection]
        # Those by client are asked in the order in which they came, so that only the last of them may come
        # again: what is entered by another one would be found before what its client has by a later one.
        if alike and _same(alike[-1].affinity, affinity, part.family):
            return (*(each for each in before if each != alike[-1]), alike[-1])
        taken = {each.number for each in known}
        following = (each % NUMBERS for each in count(last.number + 1))
        return (*before, Numbered(next(each for each in following if each not in taken), affinity))


def as_asked(before: Iterable[Numbered]) -> list[Numbered]:
    """The order in which a flow is looked for: see `affinities` in memory/snapshot.py."""
    return sorted(before, key=lambda each: each.affinity.kind != "connection")


class Outlived:
    """Goes through the flow table, and forgets affinities of which there is no flow any more.

    None is entered by them: they are looked for in the second pass that begins after a service's last change,
    and workers that have not read of it by then are gone.
    """

    def __init__(self, table: FlowTable, affinities: Affinities, tell: Callable[[], None]) -> None:
        """`tell` is called where some are forgotten."""
        self._table = table
        self._affinities = affinities
        self._tell = tell
        self._known: dict[int, Succession] = {}
        self._over: set[tuple[int, int]] = set()  #: as far as was seen
        self._wanted = np.zeros(MAX_VALUE + 1, np.bool_)
        for added in (0, CLOSING):
            self._wanted[added : added + MAX_BACKENDS] = True

    def begin(self) -> None:
        """Look for those of services that have not changed since the last pass began."""
        successions = self._affinities.successions
        before = self._affinities.before()
        self._over = {each for each in before if self._known.get(each[0]) == successions[each[0]]}
        self._known = dict(successions)

    def visit(self, start: int, stop: int) -> None:
        """Look for flows of theirs."""
        if not self._over:
            return
        rows = np.empty((stop - start, len(Row)), np.uint64)
        scopes = rows[: read(self._table, start, stop, self._wanted, rows), Row.SCOPE]
        self._over -= owners_of(scopes)

    def end(self) -> None:
        """Forget those without any."""
        if self._over:
            self._affinities.forget(self._over)
            self._tell()


def _same(one: ClientAffinity, other: ClientAffinity, family: Family) -> bool:
    return (one.kind, one.prefix(family)) == (other.kind, other.prefix(family))
