"""The index of addresses against a dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loaded_mp.datapath.index import make_index, row_of
from loaded_mp.packet.address import Address128

WORDS = st.integers(0, (1 << 64) - 1)
ADDRESSES = st.tuples(st.sampled_from([0, 1, 1 << 63]), WORDS | st.integers(0, 300))


@given(st.sets(ADDRESSES, max_size=400), st.lists(ADDRESSES, max_size=50))
def test_finds_what_is_there_and_nothing_else(
    there: set[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    rows = {address: row for row, address in enumerate(there)}
    addresses = np.array(list(there), np.uint64).reshape(-1, 2)
    index = np.zeros(4_096, np.int16)
    seed = np.uint64(make_index(index, addresses))
    for high, low in (*there, *others):
        found = row_of(index, seed, addresses, Address128(np.uint64(high), np.uint64(low)))
        assert found == rows.get((high, low), -1)


def test_has_room_for_as_many_as_there_may_be() -> None:
    addresses = np.column_stack((np.zeros(8_192), np.arange(8_192))).astype(np.uint64)
    index = np.zeros(8 * 8_192, np.int16)
    seed = np.uint64(make_index(index, addresses))
    rows = [row_of(index, seed, addresses, Address128(*addresses[row])) for row in range(0, 8_192, 97)]
    assert rows == list(range(0, 8_192, 97))
