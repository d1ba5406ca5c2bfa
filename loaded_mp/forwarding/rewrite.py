"""Workers write the addresses of every packet.

Requests are queued before conntrack and routing (raw PREROUTING), replies after them (mangle POSTROUTING).
Port matches rely on whole packets: the conntrack match at the end of LOADED-POSTROUTING makes the kernel
reassemble fragments in front of raw PREROUTING (nf_defrag_ipv4, nf_defrag_ipv6).
"""

from collections.abc import Iterator
from typing import ClassVar

from loaded_mp.fields import Address
from loaded_mp.forwarding.forwarding import Chain, Forwarding, Side
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import HEADERS, LONGEST_PACKET, errors, limits, link_messages, words


class Rewrite(Forwarding):
    """The way of the paper."""

    who: ClassVar[str] = "workers (the default)"
    needs: ClassVar[str] = (
        "the tables raw, mangle and nat, the targets NFQUEUE, CT and MASQUERADE and the matches conntrack,"
        " ttl, hl and length (xt_NFQUEUE, xt_CT, xt_MASQUERADE, xt_conntrack, xt_hl, xt_length, nf_nat,"
        " nf_tables or ip_tables)"
    )
    answer: ClassVar[Answer] = Answer.REWRITE

    def chains(self, side: Side) -> Iterator[Chain]:
        """LOADED-POSTROUTING for what backends reply, LOADED-PREROUTING for what clients send."""
        if side.vips:
            yield Chain(
                "mangle", "POSTROUTING", "LOADED-POSTROUTING", tuple(_replies(side)), "replies of backends"
            )
            yield Chain("raw", "PREROUTING", "LOADED-PREROUTING", tuple(_requests(side)), "packets for VIPs")


def _requests(side: Side) -> Iterator[str]:
    yield from link_messages(side.family)
    for server in side.name_servers:
        yield from (f"-s {server} -p {protocol} --sport 53 -j RETURN" for protocol in ("udp", "tcp"))
    for vip in side.vips:
        yield from _untracked(side, vip)
    for vip, listeners in side.vips.items():
        matches = limits(listeners, side.family, "dport")
        if listeners and all(listener.protocol != "icmp" for listener in listeners):
            matches += errors(side.family)
        yield from (words(f"-d {vip}", match, side.queue) for match in matches)


def _untracked(side: Side, vip: Address) -> Iterator[str]:
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
    yield "-o lo -j RETURN"
    yield from link_messages(side.family, redirects="DROP")
    yield from (f"{match} -j RETURN" for match in side.spared)
    yield from (words(error, side.queue) for error in errors(side.family))
    for server in side.name_servers:
        yield from (f"-d {server} -p {protocol} --dport 53 -j RETURN" for protocol in ("udp", "tcp"))
    yield from (f"-s {address} -j RETURN" for address in side.own_addresses)
    if side.long_packets:
        mss = LONGEST_PACKET - HEADERS[side.family]
        match = f"-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {mss}"
        yield from (f"{way} {network} {match}" for network in side.networks for way in ("-s", "-d"))
    listeners = dict.fromkeys(listener for each in side.vips.values() for listener in each)
    matches = limits(tuple(listeners) if all(side.vips.values()) else (), side.family, "sport")
    yield from (words(f"-s {network}", match, side.queue) for network in side.networks for match in matches)
    yield "-m conntrack --ctstate INVALID"
