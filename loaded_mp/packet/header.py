"""What a packet is: where its headers lie, or why it cannot be told.

Nothing here reads a byte outside packet[start:end].
"""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.reasons import Reason

# Protocol numbers (IANA).
ICMP = 1
TCP = 6
UDP = 17
DCCP = 33
ICMPV6 = 58
UDPLITE = 136

_OSPF, _PIM, _VRRP = 89, 103, 112
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS = 0, 43, 44, 51, 60
_MOBILITY, _HIP, _SHIM6, _EXPERIMENT_1, _EXPERIMENT_2 = 135, 139, 140, 253, 254

#: IPv6 extension headers that are followed; Linux and RFC 8504 (5.3) allow a limit.
MAX_EXTENSIONS = 8

# What is to be done with a packet, by its upper layer.
KIND_PORTS = 1  # TCP, UDP, UDP-Lite, DCCP: ports first, a checksum over addresses
KIND_QUERY = 2  # ICMP and ICMPv6 echo and the other ICMPv4 queries
KIND_ERROR = 3  # ICMP and ICMPv6 errors: they quote the packet they are about
KIND_FRAGMENT = 4  # a fragment other than the first: no upper-layer header
KIND_ADDRESS = 5  # another protocol: only the addresses are rewritten
KIND_LINK = 6  # neighbour discovery, router messages, MLD, redirects: never touched

_OK = int(Reason.OK)
_NOT_IP = int(Reason.NOT_IP)
_TOO_SHORT = int(Reason.TOO_SHORT)
_BAD_HEADER_LENGTH = int(Reason.BAD_HEADER_LENGTH)
_TRUNCATED = int(Reason.TRUNCATED)
_BAD_UPPER_LENGTH = int(Reason.BAD_UPPER_LENGTH)
_SOURCE_ROUTED = int(Reason.SOURCE_ROUTED)
_UNKNOWN_EXTENSION = int(Reason.UNKNOWN_EXTENSION)
_TOO_MANY_EXTENSIONS = int(Reason.TOO_MANY_EXTENSIONS)
_CHECKSUM_COVERS_ADDRESSES = int(Reason.CHECKSUM_COVERS_ADDRESSES)


class Header(NamedTuple):
    """What `parse` found; offsets count from the start of the buffer."""

    reason: int  #: a Reason; unless it is OK, nothing but `version` holds
    version: int  #: 4 or 6
    kind: int  #: a KIND_*
    protocol: int  #: the upper-layer protocol
    upper: int  #: offset of the upper-layer header, or of a fragment's data
    end: int  #: offset of the first byte behind the packet
    checksum: int  #: offset of the upper-layer checksum if it covers the addresses or is ICMP's, else 0


@compiled
def _fault(reason: int, version: int) -> Header:
    return Header(reason, version, 0, 0, 0, 0, 0)


@compiled
def _ipv4_source_routed(packet: Bytes, at: int, end: int) -> int:
    """Walk the options in packet[at:end] (RFC 791, 3.1): OK, SOURCE_ROUTED or BAD_HEADER_LENGTH."""
    while at < end:
        option = packet[at]
        if option == 0:
            return _OK
        if option == 1:
            at += 1
            continue
        if at + 1 >= end:
            return _BAD_HEADER_LENGTH
        length = int(np.int64(packet[at + 1]))
        if length < 2 or at + length > end:
            return _BAD_HEADER_LENGTH
        # Loose (131) and strict (137) source route: used up once the pointer is past the last address.
        if option in (131, 137) and length >= 3 and packet[at + 2] <= length:
            return _SOURCE_ROUTED
        at += length
    return _OK


@compiled
def _upper_layer(
    packet: Bytes, version: int, protocol: int, upper: int, end: int, first: bool, quoted: bool
) -> Header:
    """Classify the upper layer at offset `upper` of an unfragmented packet or a first fragment."""
    room = end - upper
    if protocol in (TCP, UDP, UDPLITE, DCCP):
        field = 16 if protocol == TCP else 6
        shortest = 20 if protocol == TCP else 12 if protocol == DCCP else 8
        if quoted:
            if room < 4:
                return _fault(_TOO_SHORT, version)
            checksum = upper + field if room >= field + 2 else 0
            return Header(_OK, version, KIND_PORTS, protocol, upper, end, checksum)
        if room < shortest:
            return _fault(_TOO_SHORT, version)
        if protocol == TCP:
            offset = (int(np.int64(packet[upper + 12])) >> 4) * 4
            if offset < 20 or (first and offset > room):
                return _fault(_BAD_UPPER_LENGTH, version)
        elif protocol == UDP and first:
            length = read16(packet, upper + 4)
            if length < 8 or length > room:
                return _fault(_BAD_UPPER_LENGTH, version)
        return Header(_OK, version, KIND_PORTS, protocol, upper, end, upper + field)
    if (version == 4 and protocol == ICMP) or (version == 6 and protocol == ICMPV6):
        if room < 8:
            return _fault(_TOO_SHORT, version)
        icmp_type = packet[upper]
        kind = KIND_LINK
        if version == 4:
            if icmp_type in (0, 8, 13, 14, 15, 16, 17, 18):
                kind = KIND_QUERY
            elif icmp_type in (3, 4, 11, 12):
                kind = KIND_ERROR
        elif icmp_type in (128, 129):
            kind = KIND_QUERY
        elif icmp_type in (1, 2, 3, 4):
            kind = KIND_ERROR
        return Header(_OK, version, kind, protocol, upper, end, upper + 2)
    if protocol == _VRRP or (version == 6 and protocol in (_OSPF, _PIM)):
        return _fault(_CHECKSUM_COVERS_ADDRESSES, version)
    return Header(_OK, version, KIND_ADDRESS, protocol, upper, end, 0)


@compiled
def _parse_ipv4(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    if end - start < 20:
        return _fault(_TOO_SHORT, 4)
    upper = start + (int(np.int64(packet[start])) & 0x0F) * 4
    if upper < start + 20 or upper > end:
        return _fault(_BAD_HEADER_LENGTH, 4)
    total = read16(packet, start + 2)
    if start + total < upper:
        return _fault(_BAD_HEADER_LENGTH, 4)
    if start + total <= end:
        end = start + total
    elif not quoted:
        return _fault(_TRUNCATED, 4)
    options = _ipv4_source_routed(packet, start + 20, upper)
    if options != _OK:
        return _fault(options, 4)
    protocol = int(np.int64(packet[start + 9]))
    fragment = read16(packet, start + 6)
    if fragment & 0x1FFF:
        return Header(_OK, 4, KIND_FRAGMENT, protocol, upper, end, 0)
    whole = (fragment & 0x2000) == 0
    return _upper_layer(packet, 4, protocol, upper, end, whole, quoted)


@compiled
def _parse_ipv6(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    if end - start < 40:
        return _fault(_TOO_SHORT, 6)
    total = 40 + read16(packet, start + 4)
    if start + total <= end:
        end = start + total
    elif not quoted:
        return _fault(_TRUNCATED, 6)
    protocol = int(np.int64(packet[start + 6]))
    upper = start + 40
    whole = True
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol in (_MOBILITY, _HIP, _SHIM6, _EXPERIMENT_1, _EXPERIMENT_2):
            return _fault(_UNKNOWN_EXTENSION, 6)
        if protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS):
            return _upper_layer(packet, 6, protocol, upper, end, whole, quoted)
        if end - upper < 8:
            return _fault(_TOO_SHORT, 6)
        following = int(np.int64(packet[upper]))
        length = 8
        if protocol == _FRAGMENT:
            fragment = read16(packet, upper + 2)
            if fragment & 0xFFF8:
                return Header(_OK, 6, KIND_FRAGMENT, following, upper + 8, end, 0)
            whole = (fragment & 1) == 0
        elif protocol == _AUTHENTICATION:
            length = (int(np.int64(packet[upper + 1])) + 2) * 4  # RFC 4302, 2.2
        else:
            length = (int(np.int64(packet[upper + 1])) + 1) * 8  # RFC 8200, 4.3
            # The pseudo-header holds the final destination, not the one in the header (RFC 8200, 8.1).
            if protocol == _ROUTING and packet[upper + 3] != 0:
                return _fault(_SOURCE_ROUTED, 6)
        if length > end - upper:
            return _fault(_BAD_HEADER_LENGTH, 6)
        upper += length
        protocol = following
    return _fault(_TOO_MANY_EXTENSIONS, 6)


@compiled
def parse(packet: Bytes, start: int, end: int, quoted: bool) -> Header:
    """Read the headers of the IP packet in packet[start:end].

    `quoted` says that it is the beginning of a packet in an ICMP error, which may be cut anywhere behind
    its ports (RFC 792; RFC 4443, 3.1). Bytes behind the length that the IP header names are ignored.
    """
    if end - start < 1:
        return _fault(_TOO_SHORT, 0)
    version = int(np.int64(packet[start])) >> 4
    if version == 4:
        return _parse_ipv4(packet, start, end, quoted)
    if version == 6:
        return _parse_ipv6(packet, start, end, quoted)
    return _fault(_NOT_IP, version)
