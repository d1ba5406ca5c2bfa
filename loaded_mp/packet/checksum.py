"""The Internet checksum (RFC 1071), whole and by increments (RFC 1624).

Sums are plain integers of any size until `fold` brings them to 16 bits. All 16-bit words are read in
network byte order.
"""

import numpy as np

from loaded_mp.compiled import Bytes, compiled, signed


@compiled
def read16(packet: Bytes, at: int) -> int:
    """The 16-bit number in network byte order at offset `at`."""
    return signed(packet[at]) << 8 | signed(packet[at + 1])


@compiled
def write16(packet: Bytes, at: int, value: int) -> None:
    """Store the 16-bit `value` in network byte order at offset `at`."""
    packet[at] = np.uint8(value >> 8)
    packet[at + 1] = np.uint8(value & 0xFF)


@compiled
def fold(total: int) -> int:
    """The one's complement 16-bit sum that `total` (>= 0, a sum of 16-bit words) stands for."""
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


@compiled
def sum_words(packet: Bytes, start: int, end: int) -> int:
    """Sum of the 16-bit words in packet[start:end], an odd last byte padded with zero (RFC 1071, 4.1).

    `start` must be a multiple of 4 and `packet` a contiguous array that is aligned to 4 bytes and at
    least `end` long: the bulk is added four bytes at a time in the byte order of the machine, which gives
    the same sum with its bytes swapped (RFC 1071, 2B).
    """
    words = packet[start : start + (end - start) // 4 * 4].view(np.uint32)
    wide = 0
    for word in words:
        wide += signed(word)
    folded = fold(wide)
    total = (folded & 0xFF) << 8 | folded >> 8
    at = start + (end - start) // 4 * 4
    if at + 1 < end:
        total += read16(packet, at)
        at += 2
    if at < end:
        total += signed(packet[at]) << 8
    return total


@compiled
def change(packet: Bytes, at: int, new: Bytes) -> int:
    """Put the bytes `new` (an even number of them) at the even offset `at`.

    Returns what a checksum over them gains: the sum of ~old + new of RFC 1624, equation 3.
    """
    gain = 0
    for i in range(0, new.size, 2):
        gain += (0xFFFF - read16(packet, at + i)) + read16(new, i)
        packet[at + i] = new[i]
        packet[at + i + 1] = new[i + 1]
    return gain


@compiled
def change16(packet: Bytes, at: int, new: int) -> int:
    """Put the 16-bit number `new` at the even offset `at`; returns as `change`."""
    gain = 0xFFFF - read16(packet, at) + new
    write16(packet, at, new)
    return gain


@compiled
def adjust(packet: Bytes, at: int, gain: int) -> int:
    """Bring the checksum at offset `at` up to date after a change that returned `gain` (RFC 1624, eq. 3).

    Returns what a checksum over this checksum field gains in its turn.
    """
    old = read16(packet, at)
    new = 0xFFFF - fold(0xFFFF - old + gain)
    write16(packet, at, new)
    return 0xFFFF - old + new


@compiled
def adjust_udp(packet: Bytes, at: int, gain: int) -> int:
    """As `adjust`, for UDP (RFC 768): zero means "no checksum" and stays; a computed zero becomes 0xffff."""
    old = read16(packet, at)
    if old == 0:
        return 0
    gained = adjust(packet, at, gain)
    if read16(packet, at) == 0:
        write16(packet, at, 0xFFFF)
        return 0xFFFF - old + 0xFFFF
    return gained
