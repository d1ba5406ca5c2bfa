"""What a packet is: where its headers lie, or why it cannot be told.

Nothing here reads a byte outside packet[start:end].
"""

from typing import NamedTuple

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.reasons import Reason

# Protocol numbers (IANA).
ICMP = 1
TCP = 6
UDP = 17
DCCP = 33
ICMPV6 = 58
SCTP = 132
UDPLITE = 136

_OSPF, _PIM, _VRRP = 89, 103, 112
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS = 0, 43, 44, 51, 60
_MOBILITY, _HIP, _SHIM6, _EXPERIMENT_1, _EXPERIMENT_2 = 135, 139, 140, 253, 254

#: IPv6 extension headers that are followed; Linux and RFC 8504 (5.3) allow a limit.
MAX_EXTENSIONS = 8

# What is to be done with a packet, by its upper layer.
KIND_PORTS = 1  # TCP, UDP, UDP-Lite, DCCP, SCTP: ports first, mostly a checksum over addresses
KIND_QUERY = 2  # ICMP and ICMPv6 echo and the other ICMPv4 queries
KIND_ERROR = 3  # ICMP and ICMPv6 errors: they quote the packet they are about
KIND_FRAGMENT = 4  # a fragment other than the first: no upper-layer header
KIND_ADDRESS = 5  # another protocol: only the addresses are rewritten
KIND_LINK = 6  # neighbour discovery, router messages, MLD, redirects: never touched

# What the upper layer is has still to be looked up.
KIND_WHOLE, KIND_FIRST_FRAGMENT = 0, -1


class Header(NamedTuple):
    """What `parse` found; offsets count from the start of the buffer."""

    reason: Reason  #: unless it is OK, nothing but `version` and `start` hold
    version: int  #: 4 or 6
    start: int  #: offset of the packet
    kind: int  #: a KIND_*
    protocol: int  #: the upper-layer protocol
    upper: int  #: offset of the upper-layer header, or of a fragment's data
    end: int  #: offset of the first byte behind the packet
    checksum: int  #: offset of the upper-layer checksum if it covers the addresses or is ICMP's, else 0


@compiled
def parse(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    """Read the headers of the IP packet in packet[start:end].

    `quoted` says that it is the beginning of a packet in an ICMP error, which may be cut anywhere behind
    its ports (RFC 792; RFC 4443, 3.1). Bytes behind the length that the IP header names are ignored.
    """
    if end - start < 1:
        return _fault(Reason.TOO_SHORT, 0, start)
    version = signed(packet[start]) >> 4
    if version == 4:
        header = _ipv4(packet, start, end, quoted)
    elif version == 6:
        header = _ipv6(packet, start, end, quoted)
    else:
        header = _fault(Reason.NOT_IP, version, start)
    if header.reason != Reason.OK or header.kind == KIND_FRAGMENT:
        return header
    return upper_layer(packet, header, quoted)


@compiled
def _fault(reason: Reason, version: int, start: int) -> Header:
    return Header(reason, version, start, 0, 0, 0, 0, 0)


@compiled
def _ipv4(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    if end - start < 20:
        return _fault(Reason.TOO_SHORT, 4, start)
    upper = start + (signed(packet[start]) & 0x0F) * 4
    if upper < start + 20 or upper > end:
        return _fault(Reason.BAD_HEADER_LENGTH, 4, start)
    total = read16(packet, start + 2)
    if start + total < upper:
        return _fault(Reason.BAD_HEADER_LENGTH, 4, start)
    if start + total <= end:
        end = start + total
    elif not quoted:
        return _fault(Reason.TRUNCATED, 4, start)
    options = _ipv4_options(packet, start + 20, upper)
    if options != Reason.OK:
        return _fault(options, 4, start)
    fragment = read16(packet, start + 6)
    kind = KIND_FIRST_FRAGMENT if fragment & 0x2000 else KIND_WHOLE
    if fragment & 0x1FFF:
        kind = KIND_FRAGMENT
    return Header(Reason.OK, 4, start, kind, signed(packet[start + 9]), upper, end, 0)


@compiled
def _ipv4_options(packet: Bytes, at: int, end: int) -> Reason:
    """Walk the options in packet[at:end] (RFC 791, 3.1): OK, SOURCE_ROUTED or BAD_HEADER_LENGTH."""
    while at < end:
        option = packet[at]
        if option == 0:
            return Reason.OK
        if option == 1:
            at += 1
            continue
        if at + 1 >= end:
            return Reason.BAD_HEADER_LENGTH
        length = signed(packet[at + 1])
        if length < 2 or at + length > end:
            return Reason.BAD_HEADER_LENGTH
        # Loose (131) and strict (137) source route: used up once the pointer is past the last address.
        if option in (131, 137) and length >= 3 and packet[at + 2] <= length:
            return Reason.SOURCE_ROUTED
        at += length
    return Reason.OK


@compiled
def _ipv6(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    if end - start < 40:
        return _fault(Reason.TOO_SHORT, 6, start)
    total = 40 + read16(packet, start + 4)
    if start + total <= end:
        end = start + total
    elif not quoted:
        return _fault(Reason.TRUNCATED, 6, start)
    protocol = signed(packet[start + 6])
    upper = start + 40
    kind = KIND_WHOLE
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol in (_MOBILITY, _HIP, _SHIM6, _EXPERIMENT_1, _EXPERIMENT_2):
            return _fault(Reason.UNKNOWN_EXTENSION, 6, start)
        if protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS):
            return Header(Reason.OK, 6, start, kind, protocol, upper, end, 0)
        if end - upper < 8:
            return _fault(Reason.TOO_SHORT, 6, start)
        following = signed(packet[upper])
        length = 8
        if protocol == _FRAGMENT:
            fragment = read16(packet, upper + 2)
            if fragment & 0xFFF8:
                return Header(Reason.OK, 6, start, KIND_FRAGMENT, following, upper + 8, end, 0)
            kind = KIND_FIRST_FRAGMENT if fragment & 1 else KIND_WHOLE
        elif protocol == _AUTHENTICATION:
            length = (signed(packet[upper + 1]) + 2) * 4  # RFC 4302, 2.2
        else:
            length = (signed(packet[upper + 1]) + 1) * 8  # RFC 8200, 4.3
            # The pseudo-header holds the final destination, not the one in the header (RFC 8200, 8.1).
            if protocol == _ROUTING and packet[upper + 3] != 0:
                return _fault(Reason.SOURCE_ROUTED, 6, start)
        if length > end - upper:
            return _fault(Reason.BAD_HEADER_LENGTH, 6, start)
        upper += length
        protocol = following
    return _fault(Reason.TOO_MANY_EXTENSIONS, 6, start)


@compiled
def upper_layer(packet: Bytes, header: Header, quoted: bool) -> Header:
    """The header of a whole packet or first fragment, whose IP headers are read, with its upper layer."""
    version, protocol = header.version, header.protocol
    if protocol in (TCP, UDP, UDPLITE, DCCP, SCTP):
        return _ports(packet, header, quoted)
    if (version == 4 and protocol == ICMP) or (version == 6 and protocol == ICMPV6):
        if header.end - header.upper < 8:
            return _fault(Reason.TOO_SHORT, version, header.start)
        return _classified(header, _icmp_kind(version, packet[header.upper]), header.upper + 2)
    if protocol == _VRRP or (version == 6 and protocol in (_OSPF, _PIM)):
        return _fault(Reason.CHECKSUM_COVERS_ADDRESSES, version, header.start)
    return _classified(header, KIND_ADDRESS, 0)


@compiled
def _classified(header: Header, kind: int, checksum: int) -> Header:
    return Header(
        Reason.OK,
        header.version,
        header.start,
        kind,
        header.protocol,
        header.upper,
        header.end,
        checksum,
    )


@compiled
def _ports(packet: Bytes, header: Header, quoted: bool) -> Header:
    """TCP (RFC 9293, 3.1), UDP (RFC 768), UDP-Lite (RFC 3828), DCCP (RFC 4340, 5.1), SCTP (RFC 9260, 3.1)."""
    protocol, upper = header.protocol, header.upper
    room = header.end - upper
    field = 16 if protocol == TCP else 6
    if quoted:
        if room < 4:
            return _fault(Reason.TOO_SHORT, header.version, header.start)
        covers = protocol != SCTP and room >= field + 2
        return _classified(header, KIND_PORTS, upper + field if covers else 0)
    if room < (20 if protocol == TCP else 12 if protocol in (DCCP, SCTP) else 8):
        return _fault(Reason.TOO_SHORT, header.version, header.start)
    whole = header.kind == KIND_WHOLE
    fits = True
    if protocol == TCP:
        offset = (signed(packet[upper + 12]) >> 4) * 4
        fits = offset >= 20 and (offset <= room or not whole)
    elif protocol == UDP and whole:
        fits = 8 <= read16(packet, upper + 4) <= room
    if not fits:
        return _fault(Reason.BAD_UPPER_LENGTH, header.version, header.start)
    return _classified(header, KIND_PORTS, 0 if protocol == SCTP else upper + field)


@compiled
def _icmp_kind(version: int, icmp_type: int) -> int:
    """RFC 792 and its registry; RFC 4443."""
    if version == 4:
        if icmp_type in (0, 8, 13, 14, 15, 16, 17, 18):
            return KIND_QUERY
        return KIND_ERROR if icmp_type in (3, 4, 11, 12) else KIND_LINK
    if icmp_type in (128, 129):
        return KIND_QUERY
    return KIND_ERROR if icmp_type in (1, 2, 3, 4) else KIND_LINK
