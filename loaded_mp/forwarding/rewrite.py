"""Workers write the addresses of every packet.

Requests are queued before conntrack and routing (raw PREROUTING), replies after them (mangle POSTROUTING).
A worker's verdict on a request carries the mark of the VIP by which it came. The mark is kept with the
connection (connmark): by it replies are known, whatever else client and backend say to each other.

This host as a client of a VIP: its requests are queued in raw OUTPUT, the replies in mangle INPUT.

Port matches rely on whole packets: the conntrack match in LOADED-POSTROUTING makes the kernel reassemble
fragments in front of raw PREROUTING (nf_defrag_ipv4, nf_defrag_ipv6).
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from loaded_mp.fields import Address, Endpoint, Network
from loaded_mp.forwarding.forwarding import Chain, Forwarding, Left, Place, Side, unmarked
from loaded_mp.memory.marks import MISPLACED, VIP, VIP_MASK, WHOLE_MASK, matched
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import HEADERS, LONGEST_PACKET, errors, limits, link_messages, words

_BY_VIP = matched(VIP, VIP_MASK)
_MISPLACED = matched(MISPLACED, WHOLE_MASK)
_OWN_REQUESTS = "this host as a client of VIPs"


class Rewrite(Forwarding):
    """The way of the paper."""

    who: ClassVar[str] = "workers (the default)"
    needs: ClassVar[str] = (
        "the tables raw, mangle and nat, the targets NFQUEUE, CT, MARK, CONNMARK and MASQUERADE and the"
        " matches conntrack, mark, connmark, ttl, hl and length (xt_NFQUEUE, xt_CT, xt_mark, xt_connmark,"
        " xt_MASQUERADE, xt_conntrack, xt_hl, xt_length, nf_nat, nf_tables or ip_tables)"
    )
    answer: ClassVar[Answer] = Answer.REWRITE

    def chains(self, side: Side) -> Iterator[Chain]:
        """What replies need comes before LOADED-PREROUTING and LOADED-OUTPUT, which let flows begin."""
        if not side.vips:
            return
        yield Chain(
            "mangle", "POSTROUTING", "LOADED-POSTROUTING", tuple(_replies(side)), "replies of backends"
        )
        yield Chain("mangle", "INPUT", "LOADED-INPUT", tuple(_marked(side)), _OWN_REQUESTS)
        # An operator's rules that set marks have to come before.
        last = any(listener.mark for each in side.vips.values() for listener in each)
        requests, own = tuple(_requests(side)), tuple(_for_vips(side))
        yield Chain("raw", "PREROUTING", "LOADED-PREROUTING", requests, "packets for VIPs", last=last)
        yield Chain("raw", "OUTPUT", "LOADED-OUTPUT", own, _OWN_REQUESTS, last=last)

    def leave(self, place: Place) -> list[Left]:
        """Delete the connections, lest the kernel take them for others than the clients'."""
        from loaded_mp.network import conntrack  # noqa: PLC0415 (names need no netlink)

        left = [
            Left(connection, Endpoint(address, found[1]))
            for vip, address in place.vips.items()
            for known in conntrack.connections_with(VIP + vip, place.family)
            for connection in (known, known.turned)
            if (found := place.behind(connection.backend))
        ]
        for vip in place.vips:
            conntrack.forget_connections(VIP + vip)
        return left

    def take_over(self, place: Place, left: Iterable[Left]) -> None:
        """Enter them under the mark of their VIP; their addresses are those that workers write."""
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


def _requests(side: Side) -> Iterator[str]:
    yield from link_messages(side.family)
    for server in side.name_servers:
        yield from (f"-s {server} -p {protocol} --sport 53 -j RETURN" for protocol in ("udp", "tcp"))
    for vip in side.vips:
        yield from _untracked(side, vip)
    if side.clients_interface:
        for network in side.networks:
            yield f"-i {side.clients_interface} -s {network} -j MARK --set-mark {_MISPLACED}"
        yield words(f"-m mark --mark {_MISPLACED}", side.queue)
    yield from _for_vips(side)


def _for_vips(side: Side) -> Iterator[str]:
    for vip, listeners in side.vips.items():
        matches = limits(listeners, side.family, "dport")
        if listeners and all(listener.protocol != "icmp" for listener in listeners):
            matches += errors(side.family)
        yield from (words(f"-d {vip}", match, side.queue) for match in matches)


def _untracked(side: Side, vip: Address | Network) -> Iterator[str]:
    """Requests that this host answers with an error instead of forwarding them.

    If such a request begins a connection, its error belongs to a connection that is not confirmed, and the
    kernel refuses to queue that (net/netfilter/nfnetlink_queue.c, nf_ct_drop_unconfirmed): so conntrack
    does not get to see them. TCP begins with packets that no link is too narrow for.
    """
    match = "-m ttl --ttl-lt 2" if side.family == 4 else "-m hl --hl-lt 2"
    yield f"-d {vip} {match} -j CT --notrack"
    if side.narrow_mtu:
        yield f"-d {vip} ! -p tcp -m length --length {side.narrow_mtu + 1}:65535 -j CT --notrack"


def _replies(side: Side) -> Iterator[str]:
    """What backends reply, and ICMP errors about packets to them.

    What this host says to itself is no client's: errors of the checks of a dead backend, for instance.
    """
    if side.long_packets:
        mss = LONGEST_PACKET - HEADERS[side.family]
        match = f"-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {mss}"
        yield from (f"{way} {network} {match}" for network in side.networks for way in ("-s", "-d"))
    yield from _marked(side)
    yield "-o lo -j RETURN"
    yield from link_messages(side.family, redirects="DROP")
    yield from unmarked(side)


def _marked(side: Side) -> Iterator[str]:
    """Keep a request's mark with its connection; let replies have it, and queue them."""
    yield f"-m mark --mark {_BY_VIP} -j CONNMARK --save-mark"
    yield f"-m mark --mark {_BY_VIP} -j RETURN"
    yield f"-m connmark --mark {_BY_VIP} -j CONNMARK --restore-mark"
    yield words(f"-m mark --mark {_BY_VIP}", side.queue)
