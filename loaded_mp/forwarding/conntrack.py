"""The kernel's NAT writes the addresses, on a worker's word.

Only the first packet of a connection is queued (nat PREROUTING, where no other comes); it passes there once
more with the mark of a backend, by which the connection is translated as long as it lives. The mark stays
with the connection (connmark), which is how its packets are counted and how the connections of a backend are
found.
"""

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from loaded_mp.fields import Endpoint, Listener
from loaded_mp.forwarding.forwarding import (
    Chain,
    Counted,
    Family,
    Forwarding,
    Left,
    Place,
    Side,
    groups,
    unmarked,
)
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK, matched
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network import iptables
from loaded_mp.network.rules import limits, words

_OURS = matched(BACKEND, BACKEND_MASK)

#: Where forwarded packets are counted. Each table costs each packet at each of its hooks: mangle has five,
#: this one three, of which a forwarded packet passes one; and it comes last, so that what a firewall does
#: in the others makes no difference to what is counted.
_COUNTING_TABLE = "security"
_COUNTER = re.compile(r"\[(\d+):(\d+)\] -A LOADED-FORWARD-\d+ -([ds]) \S+ -m connmark --mark (0x[0-9a-f]+) ")
_COLUMNS = {
    "d": (BackendCounter.TO_BACKEND_PACKETS, BackendCounter.TO_BACKEND_BYTES),
    "s": (BackendCounter.TO_CLIENT_PACKETS, BackendCounter.TO_CLIENT_BYTES),
}
_WHY = "connections that the kernel translates"
_UNKNOWN = "replies that conntrack does not know would leave with a backend's address"


class Conntrack(Forwarding):
    """Marks from workers, addresses from conntrack."""

    who: ClassVar[str] = "the kernel's NAT"
    lvs: ClassVar[str] = "Masq"
    needs: ClassVar[str] = (
        "the table security, the matches mark and connmark and the target DNAT (xt_mark, xt_connmark, xt_nat)"
    )
    answer: ClassVar[Answer] = Answer.MARK

    def chains(self, side: Side) -> Iterator[Chain]:
        """LOADED-FORWARD-* counts what is forwarded, LOADED-DNAT and LOADED-OWN-DNAT see first packets."""
        if side.vips:
            yield from _counting(side)
            yield Chain(
                _COUNTING_TABLE,
                "FORWARD",
                "LOADED-UNMARKED",
                tuple(unmarked(side)),
                _UNKNOWN,
                "-m conntrack --ctstate NEW,INVALID",
            )
            yield Chain("nat", "PREROUTING", "LOADED-DNAT", tuple(_translating(side)), _WHY)
            yield Chain("nat", "OUTPUT", "LOADED-OWN-DNAT", tuple(_translating(side)), _WHY)

    def counted(self, families: tuple[Family, ...]) -> dict[int, Counted]:
        """What the rules in LOADED-FORWARD-* have counted since they were put."""
        counted: dict[int, dict[BackendCounter, int]] = {}
        for family in families:
            for *figures, end, mark in _COUNTER.findall(iptables.saved(family, _COUNTING_TABLE)):
                backend = int(mark, 16) - BACKEND
                counted.setdefault(backend, {}).update(zip(_COLUMNS[end], map(int, figures), strict=True))
        return dict(counted)

    def forget(self, backend: int) -> None:
        """Delete the connections of a backend.

        A TCP client is then told at its next packet, by a reset from another backend; UDP goes to that one.
        """
        from loaded_mp.network.conntrack import forget_connections  # noqa: PLC0415 (names need no netlink)

        forget_connections(BACKEND + backend)

    def known(self, place: Place) -> list[Left]:
        """Those of its backends."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        return [
            Left(connection, connection.destination)
            for connection in conntrack.connections_with(BACKEND, BACKEND_MASK, place.family)
            if connection.mark - BACKEND in place.backends
        ]

    def leave(self, place: Place) -> None:
        """Delete the connections, so that packets are translated no more."""
        for backend in place.backends:
            self.forget(backend)

    def take_over(self, place: Place, left: Iterable[Left]) -> None:
        """Enter them as translated: where only the backend speaks, no first packet would come to a worker."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        conntrack.enter_connections(
            (
                (connection, vip, BACKEND + found[0])
                for connection, vip in left
                if vip.port and (found := place.behind(connection.backend))
            ),
            place.family,
        )


def _translating(side: Side) -> Iterator[str]:
    """First packets to the queue, then by their mark to a backend.

    The mark goes to the connection. Only first packets come here, so the others pay nothing for it.
    """
    if side.backends:
        yield f"-m mark --mark {_OURS} -j CONNMARK --save-mark"
    for backend, endpoint in side.backends.items():
        listeners = side.listens[backend] if endpoint.port is not None else ()
        for match, listener in zip(
            limits(listeners, side.family, "dport"), listeners or (None,), strict=True
        ):
            mark = f"-m mark --mark {BACKEND + backend:#x}"
            yield words(match, mark, f"-j DNAT --to-destination {_destination(endpoint, listener)}")
    for vip, listeners in side.vips.items():
        yield from (
            words(f"-d {vip}", match, side.queue) for match in limits(listeners, side.family, "dport")
        )


def _destination(endpoint: Endpoint, listener: Listener | None) -> str:
    """What DNAT takes: an address, a port, or ports and the first of those that they stand for."""
    if not (listener and listener.ports) or endpoint.port is None:
        return str(endpoint.ip)
    own = listener.ports.at(endpoint.port)
    return str(endpoint) if own.first == own.last else f"{endpoint}-{own.last}/{listener.first_port}"


def _counting(side: Side) -> Iterator[Chain]:
    """A counter for each backend and direction."""
    for group in groups(side.backends):
        rules = tuple(
            f"{way} {endpoint.ip} -m connmark --mark {BACKEND + backend:#x} -j RETURN"
            for backend, endpoint in group.backends.items()
            for way in ("-d", "-s")
        )
        match = f"-m connmark --mark {group.mark}"
        yield Chain(_COUNTING_TABLE, "FORWARD", f"LOADED-FORWARD-{group.number}", rules, _WHY, match)
