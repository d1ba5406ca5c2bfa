"""Putting a packet into another one, and undoing that in an ICMP error about the other one.

IP in IP (RFC 2003; RFC 2473 for IPv6), and GUE in its direct encapsulation: UDP whose payload is the packet
(draft-ietf-intarea-gue, version 1; as Linux's fou.c receives it).
"""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.packet.address import (
    Address128,
    address_length,
    destination_at,
    source_at,
    write_address,
)
from loaded_mp.packet.checksum import adjust, fold, read16, sum_words, write16
from loaded_mp.packet.header import ICMPV6, UDP, Header

#: The most that `encapsulate` adds to a packet, in bytes.
ROOM = 48

# Protocol numbers (IANA).
_IPV4, _IPV6 = 4, 41
_UDP_HEADER = 8
_HOP_LIMIT = 64
_DONT_FRAGMENT = 0x4000
#: Dynamic ports (RFC 6335, 6): 14 bits of them are chosen by the hash.
_FIRST_PORT, _PORT_BITS, _LABEL_BITS = 0xC000, np.uint64(0x3FFF), np.uint64(0xF_FFFF)
_20, _40 = np.uint64(20), np.uint64(40)


class Outer(NamedTuple):
    """What the outside of a packet that carries another says."""

    port: int  #: UDP port it is for; 0: IP in IP
    source: Address128
    destination: Bytes  #: 4 or 16 bytes
    spread: np.uint64  #: a hash of the connection: it chooses the UDP port that it is from, or the flow label


@compiled
def overhead(version: int, port: int) -> int:
    """How many bytes a tunnel to this UDP port adds; 0: IP in IP."""
    return (20 if version == 4 else 40) + (_UDP_HEADER if port else 0)


@compiled
def encapsulate(packet: Bytes, header: Header, end: int, outer: Outer) -> int:
    """Put the packet header.start:end into another one, which begins where it began.

    There must be `ROOM` bytes behind it. Traffic class and ECN are copied (RFC 6040, 4.1), and so is DF; the
    carried packet's TTL is one less (RFC 2003, 3.1), unless it is 0. The flow label is a hash (RFC 6438). UDP
    has no checksum, as what it carries has its own (RFC 6935). Returns the offset of the first byte behind.
    """
    version, start, port, spread = header.version, header.start, outer.port, outer.spread
    added = overhead(version, port)
    _take_a_hop(packet, version, start)
    _move_up(packet, start, end, added)
    end += added
    inner, length = start + added, end - start
    upper = start + (20 if version == 4 else 40)
    if version == 4:
        write16(packet, start, 0x4500 | signed(packet[inner + 1]))
        write16(packet, start + 2, length)
        write16(packet, start + 4, (read16(packet, inner + 4) + signed(spread & _PORT_BITS)) & 0xFFFF)
        write16(packet, start + 6, read16(packet, inner + 6) & _DONT_FRAGMENT)
        write16(packet, start + 8, _HOP_LIMIT << 8 | (UDP if port else _IPV4))
        write16(packet, start + 10, 0)
    else:
        label = signed(spread >> _20 & _LABEL_BITS)
        traffic_class = read16(packet, inner) & 0x0FF0
        write16(packet, start, 0x6000 | traffic_class | label >> 16)
        write16(packet, start + 2, label & 0xFFFF)
        write16(packet, start + 4, length - 40)
        write16(packet, start + 6, (UDP if port else _IPV6) << 8 | _HOP_LIMIT)
    write_address(packet, source_at(version, start), version, outer.source)
    at = destination_at(version, start)
    for i in range(address_length(version)):
        packet[at + i] = outer.destination[i]
    if version == 4:
        write16(packet, start + 10, 0xFFFF - fold(sum_words(packet, start, upper)))
    if port:
        write16(packet, upper, _FIRST_PORT | signed(spread >> _40 & _PORT_BITS))
        write16(packet, upper + 2, port)
        write16(packet, upper + 4, end - upper)
        write16(packet, upper + 6, 0)
    return end


@compiled
def carried_at(quote: Header) -> int:
    """Offset of the packet that another one carries; 0 if it carries none."""
    if quote.protocol == (_IPV4 if quote.version == 4 else _IPV6):
        return quote.upper
    return quote.upper + _UDP_HEADER if quote.protocol == UDP else 0


@compiled
def uncover(packet: Bytes, error: Header, quote: Header, inner: int) -> int:
    """Make an ICMP error about a packet that carries another, which begins at `inner`, one about that.

    It goes to that one's source, and an MTU in it becomes smaller by what the tunnel adds. Returns the offset
    of the first byte behind it.
    """
    version, start, upper = error.version, error.start, error.upper
    removed = inner - quote.start
    for i in range(inner, error.end):
        packet[i - removed] = packet[i]
    end = error.end - removed
    # RFC 1191, 4: destination unreachable, fragmentation needed; RFC 4443, 3.2: packet too big.
    if read16(packet, upper) == (0x0304 if version == 4 else 0x0200):
        write16(packet, upper + 6, max(read16(packet, upper + 6) - removed, 0))
    client, at = source_at(version, quote.start), destination_at(version, start)
    for i in range(address_length(version)):
        packet[at + i] = packet[client + i]
    write16(packet, upper + 2, 0)
    total = sum_words(packet, upper, end)
    if version == 4:
        write16(packet, start + 2, end - start)
        write16(packet, start + 10, 0)
        write16(packet, start + 10, 0xFFFF - fold(sum_words(packet, start, upper)))
    else:
        write16(packet, start + 4, end - start - 40)
        total += ICMPV6 + end - upper + sum_words(packet, start + 8, start + 40)
    write16(packet, upper + 2, 0xFFFF - fold(total))
    return end


@compiled
def _take_a_hop(packet: Bytes, version: int, start: int) -> None:
    at = start + (8 if version == 4 else 7)
    if packet[at] == 0:
        return
    packet[at] -= np.uint8(1)
    if version == 4:
        adjust(packet, start + 10, 0xFFFF - 0x0100)


@compiled
def _move_up(packet: Bytes, start: int, end: int, by: int) -> None:
    """Move packet[start:end] up by a multiple of 4 bytes; `start` must be one too."""
    whole = start + (end - start) // 4 * 4
    for i in range(end - 1, whole - 1, -1):
        packet[i + by] = packet[i]
    words = packet[start : whole + by].view(np.uint32)
    distance = by // 4
    for i in range((whole - start) // 4 - 1, -1, -1):
        words[i + distance] = words[i]
