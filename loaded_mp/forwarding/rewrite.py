"""Workers write the addresses of every packet.

Requests are queued before conntrack and routing (raw PREROUTING), replies after them (mangle POSTROUTING).
A worker's verdict on a request carries the mark of the VIP by which it came. The mark is kept with the
connection (connmark): by it replies are known, whatever else client and backend say to each other.

This host as a client of a VIP: its requests are queued in raw OUTPUT, the replies in mangle INPUT.

Port matches rely on whole packets: the conntrack match in LOADED-POSTROUTING makes the kernel reassemble
fragments in front of raw PREROUTING (nf_defrag_ipv4, nf_defrag_ipv6).
"""

from collections.abc import Iterator
from typing import ClassVar

from loaded_mp.fields import Address, Network
from loaded_mp.forwarding.forwarding import Chain, Side
from loaded_mp.forwarding.queueing import (
    BY_VIP,
    DECIDED,
    ByMark,
    by_mark,
    goes_by_marks,
    misplaced,
    replies,
    requests,
)
from loaded_mp.memory.marks import (
    LEAVES,
    LEAVES_MASK,
    LEAVING,
    LEAVING_MASK,
    WHOLE_MASK,
    matched,
)
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import HEADERS, LONGEST_PACKET, link_messages, ttl, words

_OWN_REQUESTS = "this host as a client of VIPs"
_LEAVING = f"-m mark --mark {matched(LEAVING, WHOLE_MASK)}"


class Rewrite(ByMark):
    """The way of the paper."""

    who: ClassVar[str] = "workers (the default)"
    lvs: ClassVar[str] = "Masq"
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
        rules = (*_short_segments(side), *replies(side, _leaving(side), _direct(side)))
        yield Chain("mangle", "POSTROUTING", "LOADED-POSTROUTING", rules, "replies of backends")
        yield Chain("mangle", "INPUT", "LOADED-INPUT", tuple(by_mark(side)), _OWN_REQUESTS)
        asked, own, last = tuple(_requests(side)), tuple(_for_vips(side)), goes_by_marks(side)
        yield Chain("raw", "PREROUTING", "LOADED-PREROUTING", asked, "packets for VIPs", last=last)
        yield Chain("raw", "OUTPUT", "LOADED-OUTPUT", own, _OWN_REQUESTS, last=last)


def _requests(side: Side) -> Iterator[str]:
    yield from _forwarded(side)
    yield from link_messages(side.family)
    for server in side.name_servers:
        yield from (f"-s {server} -p {protocol} --sport 53 -j RETURN" for protocol in ("udp", "tcp"))
    for vip in side.vips:
        yield from _untracked(side, vip)
    yield from misplaced(side)
    yield from _for_vips(side)


def _forwarded(side: Side) -> Iterator[str]:
    """What the fast path forwards needs none of the other rules, which would take longer than the fast path.

    A reply that comes from the clients' side does: it is misplaced.
    """
    side_of_backends = f"! -i {side.clients_interface}" if side.clients_interface else ""
    for network in side.networks if side.fast_path else ():
        yield f"-d {network} -m mark --mark {BY_VIP} -j RETURN"
        yield words(side_of_backends, f"-s {network}", _LEAVING, "-j RETURN")


def _for_vips(side: Side) -> Iterator[str]:
    if side.shared:
        yield f"{DECIDED} -j RETURN"
    yield from requests(side)


def _untracked(side: Side, vip: Address | Network) -> Iterator[str]:
    """Requests that this host answers with an error instead of forwarding them.

    If such a request begins a connection, its error belongs to a connection that is not confirmed, and the
    kernel refuses to queue that (net/netfilter/nfnetlink_queue.c, nf_ct_drop_unconfirmed): so conntrack
    does not get to see them. TCP begins with packets that no link is too narrow for.
    """
    match = ttl("lt 2", side.family)
    yield f"-d {vip} {match} -j CT --notrack"
    if side.narrow_mtu:
        yield f"-d {vip} ! -p tcp -m length --length {side.narrow_mtu + 1}:65535 -j CT --notrack"


def _leaving(side: Side) -> Iterator[str]:
    """Let a reply that the fast path forwards know its VIP, if it is one of a connection that came by one.

    Where it leaves by another interface, a worker writes the address.
    """
    bits = f"{LEAVING_MASK:#x}"
    by_vip = f"-m connmark --mark {BY_VIP}"
    for interface in side.fast_path:
        yield f"-o {interface} {_LEAVING} {by_vip} -j CONNMARK --restore-mark --nfmask {bits} --ctmask {bits}"
    if side.fast_path:
        yield f"-m mark --mark {matched(LEAVES, LEAVES_MASK)} -j RETURN"


def _direct(side: Side) -> Iterator[str]:
    """A reply of a connection by no VIP leaves as it is. `egress` drops what no rule has seen."""
    if side.fast_path:
        yield f"{_LEAVING} -j MARK --set-mark 0"


def _short_segments(side: Side) -> Iterator[str]:
    """Let no packet become longer than a queue's message can be."""
    if side.long_packets:
        mss = LONGEST_PACKET - HEADERS[side.family]
        match = f"-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {mss}"
        yield from (f"{way} {network} {match}" for network in side.networks for way in ("-s", "-d"))
