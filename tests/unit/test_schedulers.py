"""Schedulers against slow references."""

from collections import Counter
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import MAX_ROUND

weight_lists = st.lists(st.integers(0, 20), min_size=1, max_size=8)


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
    slots = SCHEDULERS["wrr"].slots(np.array(weights))
    assert slots.tolist() == (slow_smooth(weights) if any(weights) else [])


@settings(deadline=None)
@given(weight_lists)
def test_rr_takes_each_backend_once(weights: list[int]) -> None:
    assert SCHEDULERS["rr"].slots(np.array(weights)).tolist() == [i for i, w in enumerate(weights) if w]


def test_paper_example() -> None:
    slots = SCHEDULERS["wrr"].slots(np.array([5, 3, 2]))
    assert Counter(slots.tolist()) == {0: 5, 1: 3, 2: 2}
    assert slots.tolist() == [0, 1, 2, 0, 0, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("weights", [[65535, 1], [65535] * 3 + [65534, 1]])
def test_a_round_is_bounded(weights: list[int]) -> None:
    slots = SCHEDULERS["wrr"].slots(np.array(weights))
    assert slots.size <= MAX_ROUND
    share = Counter(slots.tolist())
    for backend, weight in enumerate(weights):
        assert share[backend] >= 1
        assert abs(share[backend] / slots.size - weight / sum(weights)) < 0.001
