"""Connections that come by no VIP are known until others take their places."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.datapath.lookup import Ends
from loaded_mp.fastpath.direct import connection_of, note, noted
from loaded_mp.memory.shared import MAX_DIRECT
from loaded_mp.packet.address import Address128

SECRET = np.array([1, 2], np.uint64)
_numbers = st.integers(0, (1 << 64) - 1).map(np.uint64)
_addresses = st.builds(Address128, _numbers, _numbers)
_ports = st.integers(0, 65_535)
_ends = st.builds(Ends, st.sampled_from((1, 6, 17, 58)), _addresses, _ports, _addresses, _ports)


def connection(ends: Ends) -> np.uint64:
    """As compiled code calls it: what it gives to Python is an int."""
    return np.uint64(connection_of(SECRET, ends))


@settings(deadline=None)
@given(st.lists(_ends, max_size=8, unique=True), _ends)
def test_what_is_noted_is_known_and_nothing_else(ends: list[Ends], other: Ends) -> None:
    direct = np.zeros(MAX_DIRECT, np.uint64)
    for each in ends:
        note(direct, connection(each))
    assert noted(direct, connection(other)) == (other in ends)
    assert noted(direct, connection(ends[-1])) if ends else True


def test_the_set_is_bounded_and_keeps_the_last() -> None:
    direct = np.zeros(MAX_DIRECT, np.uint64)
    hashes = np.random.default_rng(1).integers(1, 1 << 63, MAX_DIRECT, np.uint64)
    for each in hashes:
        note(direct, each)
        note(direct, each)
    kept = sum(noted(direct, each) for each in hashes[-MAX_DIRECT // 8 :])
    assert kept > 0.9 * MAX_DIRECT / 8
    assert noted(direct, hashes[-1])
    assert np.count_nonzero(direct) <= MAX_DIRECT
