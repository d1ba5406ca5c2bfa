"""Schedulers against slow references."""

import zlib
from collections import Counter
from math import gcd

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import MAX_ROUND, Candidates

weight_lists = st.lists(st.integers(0, 20), min_size=1, max_size=8)


def slots(name: str, weights: list[int], size: int = 251) -> npt.NDArray[np.uint16]:
    """What a scheduler makes of these weights; a backend's key does not depend on the others."""
    keys = [zlib.crc32(bytes([n])) << 32 | zlib.crc32(bytes([n, n])) for n in range(len(weights))]
    return SCHEDULERS[name].slots(Candidates(np.array(weights), np.array(keys, np.uint64), size))


def slow_smooth(weights: list[int]) -> list[int]:
    """A round by the definition: as fractions, nothing scaled, one Python list a step."""
    divisor = gcd(*weights)
    credits = [0] * len(weights)
    slots = []
    for _ in range(sum(weights) // divisor):
        credits = [c + w for c, w in zip(credits, weights, strict=True)]
        richest = max(range(len(weights)), key=lambda i: (credits[i], -i))
        credits[richest] -= sum(weights)
        slots.append(richest)
    return slots


@settings(deadline=None)
@given(weight_lists)
def test_smooth_wrr_equals_a_slow_reference(weights: list[int]) -> None:
    found = slots("wrr", weights)
    assert found.tolist() == (slow_smooth(weights) if any(weights) else [])


@settings(deadline=None)
@given(weight_lists)
def test_rr_takes_each_backend_once(weights: list[int]) -> None:
    assert slots("rr", weights).tolist() == [i for i, w in enumerate(weights) if w]


def test_paper_example() -> None:
    found = slots("wrr", [5, 3, 2])
    assert Counter(found.tolist()) == {0: 5, 1: 3, 2: 2}
    assert found.tolist() == [0, 1, 2, 0, 0, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("weights", [[65535, 1], [65535] * 3 + [65534, 1]])
def test_a_round_is_bounded(weights: list[int]) -> None:
    found = slots("wrr", weights)
    assert found.size <= MAX_ROUND
    share = Counter(found.tolist())
    for backend, weight in enumerate(weights):
        assert share[backend] >= 1
        assert abs(share[backend] / found.size - weight / sum(weights)) < 0.001


@settings(deadline=None)
@given(weight_lists)
def test_failover_and_overflow_go_by_descending_weight(weights: list[int]) -> None:
    order = [place for _, place in sorted((-weight, place) for place, weight in enumerate(weights) if weight)]
    assert slots("fo", weights).tolist() == slots("ovf", weights).tolist() == order


def slow_maglev(weights: list[int], size: int) -> list[int]:
    """Figure 3 of the paper, with weights as turns that are taken as often as the highest allows."""
    keys = [zlib.crc32(bytes([n])) << 32 | zlib.crc32(bytes([n, n])) for n in range(len(weights))]
    turns = [weight // gcd(*weights) for weight in weights]
    permutations = [
        iter([((key & 0xFFFFFFFF) % size + j * ((key >> 32) % (size - 1) + 1)) % size for j in range(size)])
        for key in keys
    ]
    table: list[int | None] = [None] * size
    credit = [0] * len(weights)
    while True:
        for backend, permutation in enumerate(permutations):
            credit[backend] += turns[backend]
            if not turns[backend] or credit[backend] < max(turns):
                continue
            credit[backend] -= max(turns)
            slot = next(slot for slot in permutation if table[slot] is None)
            table[slot] = backend
            if None not in table:
                return [each for each in table if each is not None]


@settings(deadline=None, max_examples=30)
@given(weight_lists, st.sampled_from([13, 101, 251]))
def test_maglev_equals_a_slow_reference(weights: list[int], size: int) -> None:
    assert slots("mh", weights, size).tolist() == (slow_maglev(weights, size) if any(weights) else [])


@pytest.mark.parametrize("weights", [[1] * 10, [1, 2, 3, 4]])
def test_maglev_spreads_by_weight_and_moves_little(weights: list[int]) -> None:
    size = 65_537
    before = slots("mh", weights, size)
    share = Counter(before.tolist())
    for backend, weight in enumerate(weights):
        assert abs(share[backend] / size - weight / sum(weights)) < 0.01
    after = slots("mh", [0, *weights[1:]], size)
    stayed = before != 0
    moved = float(np.mean(before[stayed] != after[stayed]))
    assert moved < 0.05, "of the slots of the others"
