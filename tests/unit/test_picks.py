"""Which backend a new flow gets, with schedulers that only tests have for picks that no other uses yet."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from world import World

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers import SCHEDULERS, rr
from loaded_mp.schedulers.scheduler import Scheduler
from loaded_mp.supervisor import snapshots

VIP = "192.0.2.10"
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


@pytest.fixture(autouse=True)
def scheduler() -> Iterator[Scheduler]:
    """Stands in for round robin, as a configuration knows no scheduler of a test."""
    yield SCHEDULERS["rr"]
    put(rr.SCHEDULER)


def put(scheduler: Scheduler) -> None:
    SCHEDULERS["rr"] = scheduler
    snapshots._slots.cache_clear()


def world_of(scheduler: Scheduler, weights: list[int]) -> World:
    put(scheduler)
    backends = dict(zip(BACKENDS, weights, strict=True))
    return World(service("web", [VIP], backends, scheduler="rr"))


def ask(world: World, source: int) -> str:
    packet = IP(src=f"198.51.{source // 250}.{source % 250 + 1}", dst=VIP) / UDP(sport=1, dport=2)
    return world.backend_of(packet)


def test_a_hash_is_the_same_for_good_and_spreads() -> None:
    by_hash = Scheduler(rr.SCHEDULER.slots, Pick.HASH)
    one, other = world_of(by_hash, [1, 1, 1]), world_of(by_hash, [1, 1, 1])
    other.table.secret[:] = 77
    answers = [ask(one, source) for source in range(300)]
    assert [ask(other, source) for source in reversed(range(300))] == answers[::-1]
    assert all(70 <= count <= 130 for count in Counter(answers).values())


@settings(deadline=None, max_examples=30)
@given(
    weights=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    plus=st.integers(0, 1),
    weighted=st.booleans(),
    leaving=st.lists(st.integers(0, 2), max_size=20),
)
def test_the_least_loaded_is_taken(weights: list[int], plus: int, weighted: bool, leaving: list[int]) -> None:
    world = world_of(Scheduler(rr.SCHEDULER.slots, Pick.LEAST, plus, weighted), weights)
    if not any(weights):
        return
    ids = [world.backends["web", address] for address in BACKENDS]
    model = [0, 0, 0]
    for source in range(40):
        if source < len(leaving) and model[leaving[source]]:
            model[leaving[source]] -= 1
            world.memory.active[-1, ids[leaving[source]]] -= 1
        loads = [((model[i] + plus) / (weights[i] if weighted else 1), i) for i in range(3) if weights[i] > 0]
        expected = min(loads)[1]
        assert ask(world, source) == BACKENDS[expected]
        model[expected] += 1
    assert world.memory.active.sum(axis=0)[ids].tolist() == model


def test_the_next_slot_is_taken_over_all_workers() -> None:
    world = world_of(rr.SCHEDULER, [1, 1, 1])
    assert [ask(world, source) for source in range(6)] == BACKENDS * 2
    assert int(world.memory.cursors.sum()) == 6
    assert np.count_nonzero(world.memory.cursors) == 1
