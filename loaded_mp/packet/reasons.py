"""Why a packet was not balanced, and what becomes of it. Every reason has a counter."""

from enum import IntEnum
from typing import Self

import numpy as np


class Fate(IntEnum):
    """What becomes of a packet that is not balanced."""

    DROP = 0
    PASS = 1  #: as it is
    PASS_UNLESS_FLOW = 2  #: as it is, unless it may belong to a flow: then nobody could rewrite it
    REJECT = 3  #: as it is, to be answered with a TCP reset or an ICMP error


class Reason(IntEnum):
    """What became of a packet. The values index the counters in shared memory.

    What clients send to a VIP and cannot be read is dropped. What comes from the backends' side and cannot be
    read is theirs: loaded-mp is no firewall. But a packet of a living connection never leaves with a
    backend's own address.
    """

    text: str  #: one line an operator can read
    from_client: Fate
    from_backend: Fate
    must_be_zero: bool  #: a packet with this reason shows a fault of loaded-mp

    def __new__(
        cls, value: int, text: str, from_client: Fate, from_backend: Fate, must_be_zero: bool = False
    ) -> Self:
        """Members are written as NAME = value, text, from_client, from_backend."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.text, member.from_client, member.from_backend = text, from_client, from_backend
        member.must_be_zero = must_be_zero
        return member

    OK = 0, "balanced", Fate.PASS, Fate.PASS
    NOT_IP = 1, "the version field is neither 4 nor 6", Fate.DROP, Fate.DROP, True
    TOO_SHORT = 2, "shorter than the smallest header of its kind", Fate.DROP, Fate.PASS_UNLESS_FLOW
    BAD_HEADER_LENGTH = (
        3,
        "a header length points outside the packet or below the smallest header",
        Fate.DROP,
        Fate.PASS_UNLESS_FLOW,
    )
    TRUNCATED = 4, "the IP length says more bytes than arrived", Fate.DROP, Fate.PASS_UNLESS_FLOW
    BAD_UPPER_LENGTH = (
        5,
        "the length in the TCP or UDP header does not fit the packet",
        Fate.DROP,
        Fate.PASS_UNLESS_FLOW,
    )
    SOURCE_ROUTED = 6, "carries a source route that is not used up", Fate.DROP, Fate.PASS_UNLESS_FLOW
    UNKNOWN_EXTENSION = (
        7,
        "an IPv6 extension header that cannot be passed over",
        Fate.DROP,
        Fate.PASS_UNLESS_FLOW,
    )
    TOO_MANY_EXTENSIONS = (
        8,
        "more IPv6 extension headers than are followed",
        Fate.DROP,
        Fate.PASS_UNLESS_FLOW,
    )
    CHECKSUM_COVERS_ADDRESSES = (
        9,
        "a protocol whose checksum covers addresses and is not known here",
        Fate.DROP,
        Fate.PASS_UNLESS_FLOW,
    )
    BAD_QUOTE = 10, "an ICMP error whose quoted packet cannot be read", Fate.DROP, Fate.PASS_UNLESS_FLOW
    CUT = 11, "too long for the queue, arrived cut", Fate.DROP, Fate.DROP
    CHECKSUM_UNFINISHED = (
        12,
        "a checksum that is left to the network card and not known here",
        Fate.DROP,
        Fate.DROP,
    )
    NO_SERVICE = 13, "for an address, protocol or port that no service has", Fate.PASS, Fate.PASS
    NO_BACKEND = 14, "for a service without a usable backend", Fate.DROP, Fate.DROP
    NO_FLOW = 15, "from a backend or about a packet, without a flow that it belongs to", Fate.PASS, Fate.PASS
    LINK = 16, "neighbour discovery, router messages, MLD or a redirect, never touched", Fate.PASS, Fate.PASS
    LOST_RACE = 17, "its flow was changed by others at each of many looks", Fate.DROP, Fate.DROP, True
    ENDING = 18, "begins a connection with a backend or a daemon that stops", Fate.DROP, Fate.DROP
    ENDED = 19, "of a connection that stops: it is reset", Fate.REJECT, Fate.DROP
    GONE = (
        20,
        "of a connection whose VIP, service or backend was taken away",
        Fate.DROP,
        Fate.DROP,
    )
    UNMARKED = (
        21,
        "a reply whose connection the kernel has forgotten, which alone knew its VIP",
        Fate.DROP,
        Fate.DROP,
    )
    TOLD = (
        22,
        "of a connection whose service or backend was taken away: its client is reset",
        Fate.DROP,
        Fate.DROP,
    )
    MISPLACED = 23, "from the clients' side with the address of a backend", Fate.DROP, Fate.DROP
    OVER_SHARE = (
        24,
        "more than its client's share while others waited; clients without a flow share as one",
        Fate.DROP,
        Fate.DROP,
    )
    REJECTED = (
        25,
        "for a service without a backend that takes new flows, which rejects then",
        Fate.REJECT,
        Fate.DROP,
    )
    HELD = 26, "while its service went over to another way of forwarding", Fate.DROP, Fate.DROP
    FULL = 27, "for a service whose usable backends have all flows that they may have", Fate.DROP, Fate.DROP
    UNCUT = (
        28,
        "for a tunnel, several that the kernel had joined before it was told not to",
        Fate.DROP,
        Fate.DROP,
    )


#: Fates by direction (0: from a client, 1: from a backend) and Reason, for compiled code.
FATES = np.array([[r.from_client for r in Reason], [r.from_backend for r in Reason]], np.int64)
