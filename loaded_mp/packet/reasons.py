"""Why a packet was not balanced. Every reason has a counter, also those that should stay zero."""

from enum import IntEnum


class Reason(IntEnum):
    """What became of a packet. The values index the counters in shared memory."""

    OK = 0
    NOT_IP = 1
    TOO_SHORT = 2
    BAD_HEADER_LENGTH = 3
    TRUNCATED = 4
    BAD_UPPER_LENGTH = 5
    SOURCE_ROUTED = 6
    UNKNOWN_EXTENSION = 7
    TOO_MANY_EXTENSIONS = 8
    CHECKSUM_COVERS_ADDRESSES = 9
    BAD_QUOTE = 10
    CUT = 11
    CHECKSUM_UNFINISHED = 12
    NO_SERVICE = 13
    NO_BACKEND = 14
    NO_FLOW = 15
    LINK = 16


#: One line an operator can read, for each reason.
REASON_TEXT: dict[Reason, str] = {
    Reason.OK: "well formed",
    Reason.NOT_IP: "the version field is neither 4 nor 6",
    Reason.TOO_SHORT: "shorter than the smallest header of its kind",
    Reason.BAD_HEADER_LENGTH: "a header length points outside the packet or below the smallest header",
    Reason.TRUNCATED: "the IP length says more bytes than arrived",
    Reason.BAD_UPPER_LENGTH: "the length in the TCP or UDP header does not fit the packet",
    Reason.SOURCE_ROUTED: "carries a source route that is not used up",
    Reason.UNKNOWN_EXTENSION: "an IPv6 extension header that cannot be passed over",
    Reason.TOO_MANY_EXTENSIONS: "more IPv6 extension headers than are followed",
    Reason.CHECKSUM_COVERS_ADDRESSES: "a protocol whose checksum covers addresses and is not known here",
    Reason.BAD_QUOTE: "an ICMP error whose quoted packet cannot be read",
    Reason.CUT: "too long for the queue, arrived cut",
    Reason.CHECKSUM_UNFINISHED: "a checksum that is left to the network card and not known here",
    Reason.NO_SERVICE: "for an address, protocol or port that no service has",
    Reason.NO_BACKEND: "for a service without a usable backend",
    Reason.NO_FLOW: "from a backend or about a packet, without a flow that it belongs to",
    Reason.LINK: "neighbour discovery, router messages, MLD or a redirect, never touched",
}
