"""Putting another address into a packet, with every checksum that covers it."""

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.packet.checksum import adjust, adjust_udp, change, fold, read16, sum_words, write16
from loaded_mp.packet.header import ICMP, KIND_PORTS, UDP, UDPLITE, Header


@compiled
def source_at(version: int, start: int) -> int:
    """Offset of the source address in a header that begins at `start` (RFC 791, 3.1; RFC 8200, 3)."""
    return start + 12 if version == 4 else start + 8


@compiled
def destination_at(version: int, start: int) -> int:
    """Offset of the destination address in a header that begins at `start`."""
    return start + 16 if version == 4 else start + 24


@compiled
def address_length(version: int) -> int:
    """Bytes in an address: 4 or 16."""
    return 4 if version == 4 else 16


@compiled
def _change_address(packet: Bytes, header: Header, start: int, at: int, address: Bytes) -> int:
    """Change the address at offset `at` and the checksums that cover it.

    Returns what a checksum over the whole packet gains, as an ICMP error that quotes it needs it.
    """
    gain = change(packet, at, address)
    total = gain
    if header.version == 4:
        total += adjust(packet, start + 10, gain)
    if header.checksum and not (header.version == 4 and header.protocol == ICMP):
        if header.protocol == UDP:
            total += adjust_udp(packet, header.checksum, gain)
        else:
            total += adjust(packet, header.checksum, gain)
    return total


@compiled
def set_source(packet: Bytes, header: Header, start: int, address: Bytes) -> int:
    """Make `address` (4 or 16 bytes) the source of the packet that begins at `start`."""
    return _change_address(packet, header, start, source_at(header.version, start), address)


@compiled
def set_destination(packet: Bytes, header: Header, start: int, address: Bytes) -> int:
    """Make `address` (4 or 16 bytes) the destination of the packet that begins at `start`."""
    return _change_address(packet, header, start, destination_at(header.version, start), address)


@compiled
def set_quoted_source(packet: Bytes, error: Header, quote: Header, start: int, address: Bytes) -> None:
    """Change the source of the packet quoted at `start` in the ICMP error `error`."""
    adjust(packet, error.checksum, set_source(packet, quote, start, address))


@compiled
def set_quoted_destination(packet: Bytes, error: Header, quote: Header, start: int, address: Bytes) -> None:
    """Change the destination of the packet quoted at `start` in the ICMP error `error`."""
    adjust(packet, error.checksum, set_destination(packet, quote, start, address))


@compiled
def complete_checksum(packet: Bytes, header: Header, start: int) -> None:
    """Compute the TCP or UDP checksum anew, where the kernel left only the pseudo-header's sum in it.

    `start` must be a multiple of 4. Linux leaves it so for its own packets and for GSO
    (include/uapi/linux/netfilter/nfnetlink_queue.h, NFQA_SKB_CSUMNOTREADY).
    """
    if header.kind != KIND_PORTS or header.protocol == UDPLITE:
        return
    write16(packet, header.checksum, 0)
    total = sum_words(packet, header.upper, header.end) + header.protocol + (header.end - header.upper)
    addresses = source_at(header.version, start)
    for at in range(addresses, addresses + 2 * address_length(header.version), 2):
        total += read16(packet, at)
    value = 0xFFFF - fold(total)
    if value == 0 and header.protocol == UDP:
        value = 0xFFFF
    write16(packet, header.checksum, value)
