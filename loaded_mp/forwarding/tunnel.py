"""A worker puts the packet into another one for the backend, which takes it out.

The backend has the VIP and answers the client itself, as with `dr`, but need not be on a link of this host.

A verdict may lengthen a packet. What it holds then passes the rule once more (raw PREROUTING), where
conntrack is told to leave it alone, and is routed to the backend. Its source is no address of this host, as
which the kernel forwards nothing; the route back that rp_filter wants leads to the clients.

Where a packet is too long for its way, the kernel says so to its source, by an error that never leaves this
host (raw OUTPUT): a worker makes it one about the packet that was carried, for the client. Errors of routers
on the way come by raw PREROUTING.
"""

from collections.abc import Iterator
from typing import ClassVar

from loaded_mp.forwarding.forwarding import Chain, Side
from loaded_mp.forwarding.queueing import (
    FROM_BEFORE,
    ByMark,
    goes_by_marks,
    misplaced,
    replies,
    requests,
)
from loaded_mp.memory.counters import OF_REQUESTS, BackendCounter
from loaded_mp.memory.marks import TUNNEL, WHOLE_MASK, matched
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import errors, link_messages, ttl, words

_TUNNEL = matched(TUNNEL, WHOLE_MASK)


class Tunnelling(ByMark):
    """IP in IP and GUE."""

    who: ClassVar[str] = "nobody, workers put packets into others for backends that have the VIP"
    lvs: ClassVar[str] = "Tunnel"
    needs: ClassVar[str] = (
        "the tables raw and mangle, the matches mark, conntrack, ttl and hl and the targets CT and MARK"
    )
    answer: ClassVar[Answer] = Answer.TUNNEL
    counters: ClassVar[tuple[BackendCounter, ...]] = OF_REQUESTS
    ports_stay: ClassVar[bool] = True
    sends: ClassVar[tuple[str, ...]] = (
        "destination {vip} stays, in a packet for {backend}",
        "which takes it out and answers the client itself",
    )
    carries: ClassVar[bool] = True

    def chains(self, side: Side) -> Iterator[Chain]:
        """LOADED-TUNNEL brings requests to workers, and errors, as LOADED-TUNNEL-ERRORS does.

        LOADED-TUNNEL-REPLIES is what LOADED-DR-REPLIES is.
        """
        if side.vips:
            left = tuple(replies(side, with_errors=False))
            yield Chain("mangle", "POSTROUTING", "LOADED-TUNNEL-REPLIES", left, FROM_BEFORE)
            why = "errors about what tunnels carry"
            yield Chain("raw", "OUTPUT", "LOADED-TUNNEL-ERRORS", tuple(_errors(side)), why)
            rules, last = tuple(_requests(side)), goes_by_marks(side)
            yield Chain("raw", "PREROUTING", "LOADED-TUNNEL", rules, "packets for VIPs", last=last)


def _requests(side: Side) -> Iterator[str]:
    """This host itself is no client. What has no TTL left would go round where balancers are backends."""
    yield "-i lo -j RETURN"
    yield f"-m mark --mark {_TUNNEL} -j CT --notrack"
    yield f"-m mark --mark {_TUNNEL} -j RETURN"
    yield from link_messages(side.family)
    yield from _errors(side)
    yield from misplaced(side)
    match = ttl("eq 0", side.family)
    yield from (f"-d {vip} {match} -j DROP" for vip in side.vips)
    yield from requests(side)


def _errors(side: Side) -> Iterator[str]:
    for network in side.sources:
        yield from (f"-d {network} {error} -j MARK --set-mark {_TUNNEL}" for error in errors(side.family))
    yield f"-m mark --mark {_TUNNEL} -j CT --notrack"
    yield words(f"-m mark --mark {_TUNNEL}", side.queue)
