"""How requests and replies come to workers, whichever way they are forwarded."""

from collections.abc import Iterable, Iterator

from loaded_mp.fields import Endpoint
from loaded_mp.forwarding.forwarding import Forwarding, Left, Place, Side, unmarked
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK, MISPLACED, VIP, VIP_MASK, WHOLE_MASK, matched
from loaded_mp.network.rules import errors, limits, link_messages, words

#: Why a way whose replies do not pass this host has a chain for them.
FROM_BEFORE = "replies of connections that were forwarded in another way before"
#: A worker has decided this packet, and the kernel goes on with it.
DECIDED = f"-m mark --mark {matched(BACKEND, BACKEND_MASK)}"
#: It is a request of a connection by a VIP, and its address is written.
BY_VIP = matched(VIP, VIP_MASK)
_MISPLACED = matched(MISPLACED, WHOLE_MASK)


def misplaced(side: Side) -> Iterator[str]:
    """What claims to come from a backend but arrives on the clients' side: a worker drops and counts it."""
    if side.clients_interface:
        for network in side.networks:
            yield f"-i {side.clients_interface} -s {network} -j MARK --set-mark {_MISPLACED}"
        yield words(f"-m mark --mark {_MISPLACED}", side.queue)


def goes_by_marks(side: Side) -> bool:
    """Whether an operator's rules set marks that listeners ask for: these rules have to come before."""
    return any(listener.mark for each in side.vips.values() for listener in each)


def requests(side: Side) -> Iterator[str]:
    """What is for a VIP, and ICMP errors about what came from it."""
    for vip, listeners in side.vips.items():
        matches = limits(listeners, side.family, "dport")
        if listeners and all(listener.protocol != "icmp" for listener in listeners):
            matches += errors(side.family)
        yield from (words(f"-d {vip}", match, side.queue) for match in matches)


def replies(
    side: Side, leaving: Iterable[str] = (), direct: Iterable[str] = (), with_errors: bool = True
) -> Iterator[str]:
    """What backends reply, and ICMP errors about packets to them.

    `leaving`: rules for those that no worker has to see, `direct`: for those of no VIP's connection.
    What this host says to itself is no client's: errors of the checks of a dead backend, for instance.
    """
    yield from by_mark(side, leaving)
    yield from direct
    yield "-o lo -j RETURN"
    yield from link_messages(side.family, redirects="DROP")
    yield from unmarked(side, with_errors)


def by_mark(side: Side, leaving: Iterable[str] = ()) -> Iterator[str]:
    """Keep a request's mark with its connection; let replies have it, and queue them."""
    yield f"-m mark --mark {BY_VIP} -j CONNMARK --save-mark"
    yield f"-m mark --mark {BY_VIP} -j RETURN"
    yield from leaving
    yield f"-m connmark --mark {BY_VIP} -j CONNMARK --restore-mark"
    yield words(f"-m mark --mark {BY_VIP}", side.queue)


class ByMark(Forwarding):
    """Ways of forwarding whose connections conntrack knows by the marks of their VIPs, if it knows them."""

    def known(self, place: Place) -> list[Left]:
        """Those of its VIPs."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        return [
            Left(connection, Endpoint(place.vips[known.mark - VIP], found[1]))
            for known in conntrack.connections_with(VIP, VIP_MASK, place.family)
            if known.mark - VIP in place.vips
            for connection in (known, known.turned)
            if (found := place.behind(connection.backend))
        ]

    def leave(self, place: Place) -> None:
        """Delete them, lest the kernel take them for others than the clients'."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        for vip in place.vips:
            conntrack.forget_connections(VIP + vip)

    def take_over(self, place: Place, left: Iterable[Left]) -> None:
        """Enter them under these marks: replies come to workers, who write the addresses."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        marks = {address: VIP + vip for vip, address in place.vips.items()}
        conntrack.enter_connections(
            (
                (connection, connection.backend, marks[vip.ip])
                for connection, vip in left
                if vip.port and vip.ip in marks
            ),
            place.family,
        )
