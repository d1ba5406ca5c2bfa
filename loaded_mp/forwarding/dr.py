"""The packet goes to the backend's link address as it is.

The backend has the VIP and answers the client itself: replies do not pass this machine.

A worker's verdict on a request is a mark that names the backend; the packet passes the rule once more with it
(raw PREROUTING), where TEE sends a copy to the backend, past routing, conntrack and all addresses of this
machine, and the packet itself is dropped (nf_dup_ipv4.c and nf_dup_ipv6.c in the kernel).

Port matches rely on whole packets, as in `rewrite`.
"""

from collections.abc import Iterator
from typing import ClassVar

from loaded_mp.forwarding.forwarding import Chain, Side, groups
from loaded_mp.forwarding.queueing import (
    DECIDED,
    FROM_BEFORE,
    ByMark,
    goes_by_marks,
    misplaced,
    replies,
    requests,
)
from loaded_mp.memory.counters import OF_REQUESTS, BackendCounter
from loaded_mp.memory.marks import BACKEND
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import link_messages, ttl


class DirectRouting(ByMark):
    """LVS's way of this name."""

    who: ClassVar[str] = "nobody, the backends have the VIP"
    lvs: ClassVar[str] = "Route"
    sends: ClassVar[tuple[str, ...]] = (
        "destination {vip} stays: it goes to the link address of {backend}",
        "which answers the client itself",
    )
    needs: ClassVar[str] = (
        "the tables raw and mangle, the matches mark and conntrack and the target TEE (xt_TEE)"
    )
    answer: ClassVar[Answer] = Answer.DIRECT
    counters: ClassVar[tuple[BackendCounter, ...]] = OF_REQUESTS
    ports_stay: ClassVar[bool] = True
    on_link: ClassVar[bool] = True

    def chains(self, side: Side) -> Iterator[Chain]:
        """LOADED-DR-* send what is decided, LOADED-DR brings what is not to workers.

        LOADED-DR-REPLIES is for connections from when workers or the kernel's NAT wrote the addresses: their
        clients hear of the end only if the backend's words reach them.
        """
        if side.vips:
            yield Chain("mangle", "POSTROUTING", "LOADED-DR-REPLIES", tuple(_left(side)), FROM_BEFORE)
            yield from _sending(side)
            rules, last = tuple(_requests(side)), goes_by_marks(side)
            yield Chain("raw", "PREROUTING", "LOADED-DR", rules, "packets for VIPs", last=last)


def _left(side: Side) -> Iterator[str]:
    yield f"{DECIDED} -j RETURN"
    yield from replies(side, with_errors=False)


def _sending(side: Side) -> Iterator[Chain]:
    """TEE takes one from the TTL without looking, so what would have none left is dropped before.

    What is decided comes to the beginning of PREROUTING once more: a rule of others that stood before these
    chains could mark it anew, and it would be queued for ever.
    """
    why = "packets whose backend is decided"
    for group in groups(side.backends):
        rules = ["-i lo -j RETURN", f"{ttl('lt 2', side.family)} -j DROP"]
        for backend, endpoint in group.backends.items():
            marked = f"-m mark --mark {BACKEND + backend:#x}"
            rules += [f"{marked} -j TEE --gateway {endpoint.ip}", f"{marked} -j DROP"]
        match = f"-m mark --mark {group.mark}"
        name = f"LOADED-DR-{group.number}"
        yield Chain("raw", "PREROUTING", name, tuple(rules), why, match, first=True)


def _requests(side: Side) -> Iterator[str]:
    """This machine itself is no client: its packets come from the VIP, which backends take for theirs."""
    yield "-i lo -j RETURN"
    yield f"{DECIDED} -j RETURN"
    yield from link_messages(side.family)
    yield from misplaced(side)
    yield from requests(side)
