"""Putting another address and port into a packet, with every checksum that covers them."""

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.packet.address import address_length, destination_at, source_at
from loaded_mp.packet.checksum import adjust, adjust_udp, change, change16, fold, read16, sum_words, write16
from loaded_mp.packet.crc32c import crc32c
from loaded_mp.packet.header import ICMP, KIND_PORTS, SCTP, UDP, UDPLITE, Header


@compiled
def set_source(packet: Bytes, header: Header, address: Bytes, port: int) -> int:
    """Make `address` (4 or 16 bytes) the source of a packet, and `port`, if it has ports.

    Returns what a checksum over the whole packet gains, as an ICMP error that quotes it needs it.
    """
    return _set_end(packet, header, source_at(header.version, header.start), address, header.upper, port)


@compiled
def set_destination(packet: Bytes, header: Header, address: Bytes, port: int) -> int:
    """As `set_source`, for the destination."""
    at = destination_at(header.version, header.start)
    return _set_end(packet, header, at, address, header.upper + 2, port)


@compiled
def set_quoted_source(packet: Bytes, error: Header, quote: Header, address: Bytes, port: int) -> None:
    """Change the source of the packet that the ICMP error `error` quotes."""
    adjust(packet, error.checksum, set_source(packet, quote, address, port))


@compiled
def set_quoted_destination(packet: Bytes, error: Header, quote: Header, address: Bytes, port: int) -> None:
    """Change the destination of the packet that the ICMP error `error` quotes."""
    adjust(packet, error.checksum, set_destination(packet, quote, address, port))


@compiled
def _set_end(packet: Bytes, header: Header, at: int, address: Bytes, port_at: int, port: int) -> int:
    """Change the address at offset `at`, the port at `port_at`, and the checksums that cover them."""
    gain = change(packet, at, address)
    total = adjust(packet, header.start + 10, gain) if header.version == 4 else 0
    if header.kind == KIND_PORTS:
        gain += change16(packet, port_at, port)
    total += gain
    if header.checksum and not (header.version == 4 and header.protocol == ICMP):
        if header.protocol == UDP:
            total += adjust_udp(packet, header.checksum, gain)
        else:
            total += adjust(packet, header.checksum, gain)
    return total


@compiled
def complete_checksum(packet: Bytes, header: Header) -> None:
    """Compute the TCP, UDP or SCTP checksum anew, where the kernel left that to the network card.

    The packet must begin at a multiple of 4. For its own packets and for GSO Linux leaves the pseudo-header's
    sum, or nothing, in its place (include/uapi/linux/netfilter/nfnetlink_queue.h, NFQA_SKB_CSUMNOTREADY).
    """
    if header.kind != KIND_PORTS or header.protocol == UDPLITE:
        return
    if header.protocol == SCTP:
        at = header.upper + 8
        packet[at : at + 4] = 0
        crc = crc32c(packet, header.upper, header.end)
        for i in range(4):
            packet[at + i] = crc >> 8 * i & 0xFF
        return
    write16(packet, header.checksum, 0)
    total = sum_words(packet, header.upper, header.end) + header.protocol + (header.end - header.upper)
    addresses = source_at(header.version, header.start)
    for at in range(addresses, addresses + 2 * address_length(header.version), 2):
        total += read16(packet, at)
    value = 0xFFFF - fold(total)
    if value == 0 and header.protocol == UDP:
        value = 0xFFFF
    write16(packet, header.checksum, value)
