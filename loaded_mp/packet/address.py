"""Addresses in packets: where they lie, and as numbers that can be compared."""

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled

_MAPPED = 0xFFFF << 32
_MAPPED_WORD = np.uint64(_MAPPED)
_EIGHT = np.uint64(8)
_LAST_BYTE = np.uint64(0xFF)
_ZERO = np.uint64(0)


class Address128(NamedTuple):
    """An IPv6 address as two big-endian numbers; IPv4 as IPv4-mapped address (RFC 4291, 2.5.5.2)."""

    high: np.uint64
    low: np.uint64


def address128(address: IPv4Address | IPv6Address) -> Address128:
    """An address as packets' addresses are compared with."""
    number = int(address) | (_MAPPED if address.version == 4 else 0)
    return Address128(np.uint64(number >> 64), np.uint64(number & (1 << 64) - 1))


def ip_of(address: Address128) -> IPv4Address | IPv6Address:
    """The address for people."""
    number = int(address.high) << 64 | int(address.low)
    return IPv6Address(number).ipv4_mapped or IPv6Address(number)


@compiled
def read_address(packet: Bytes, at: int, version: int) -> Address128:
    """The address at offset `at`."""
    if version == 4:
        return Address128(_ZERO, _MAPPED_WORD | _read(packet, at, 4))
    return Address128(_read(packet, at, 8), _read(packet, at + 8, 8))


@compiled
def _read(packet: Bytes, at: int, length: int) -> np.uint64:
    value = _ZERO
    for i in range(at, at + length):
        value = value << _EIGHT | np.uint64(packet[i])
    return value


@compiled
def write_address(packet: Bytes, at: int, version: int, address: Address128) -> None:
    """Store an address at offset `at`."""
    if version == 6:
        _write(packet, at, 8, address.high)
        _write(packet, at + 8, 8, address.low)
    else:
        _write(packet, at, 4, address.low)


@compiled
def _write(packet: Bytes, at: int, length: int, value: np.uint64) -> None:
    for i in range(at + length - 1, at - 1, -1):
        packet[i] = np.uint8(value & _LAST_BYTE)
        value = value >> _EIGHT


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
