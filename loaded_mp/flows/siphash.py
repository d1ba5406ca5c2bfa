"""SipHash-1-3 of a flow's key (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012).

Keyed, so that nobody can choose source addresses that share a bucket.
"""

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.flows.atomics import Words

_13, _16, _17, _21, _32 = (np.uint64(n) for n in (13, 16, 17, 21, 32))
_64 = np.uint64(64)
_FINAL = np.uint64(0xFF)
_INITIAL = tuple(
    np.uint64(n) for n in (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
)


@compiled
def _rotate(x: np.uint64, bits: np.uint64) -> np.uint64:
    return x << bits | x >> (_64 - bits)


@compiled
def _round(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    a += b
    b = _rotate(b, _13) ^ a
    a = _rotate(a, _32)
    c += d
    d = _rotate(d, _16) ^ c
    a += d
    d = _rotate(d, _21) ^ a
    c += b
    b = _rotate(b, _17) ^ c
    c = _rotate(c, _32)
    return a, b, c, d


@compiled
def siphash(secret: Words, first: np.uint64, second: np.uint64, third: np.uint64) -> np.uint64:
    """Hash of the 24-byte message first, second, third (little-endian words) under `secret` (uint64[2])."""
    a, b = _INITIAL[0] ^ secret[0], _INITIAL[1] ^ secret[1]
    c, d = _INITIAL[2] ^ secret[0], _INITIAL[3] ^ secret[1]
    for word in (first, second, third, np.uint64(24 << 56)):
        d ^= word
        a, b, c, d = _round(a, b, c, d)
        a ^= word
    c ^= _FINAL
    for _ in range(3):
        a, b, c, d = _round(a, b, c, d)
    result: np.uint64 = a ^ b ^ c ^ d
    return result
