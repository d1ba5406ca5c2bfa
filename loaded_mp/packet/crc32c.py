"""The checksum of SCTP (RFC 9260, appendix A): CRC32c. It does not cover addresses."""

import numpy as np

from loaded_mp.compiled import Bytes, compiled, signed

#: Castagnoli's polynomial with its bits reversed.
_POLYNOMIAL = 0x82F6_3B78
_ALL_ONES = 0xFFFF_FFFF


def _table() -> list[int]:
    """What each byte makes of a sum of zeros."""
    entries = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return entries


_TABLE = np.array(_table(), np.int64)


@compiled
def crc32c(packet: Bytes, start: int, end: int) -> int:
    """The checksum of packet[start:end]. It is sent with its least significant byte first."""
    total = _ALL_ONES
    for at in range(start, end):
        total = total >> 8 ^ signed(_TABLE[(total ^ signed(packet[at])) & 0xFF])
    return total ^ _ALL_ONES
