"""Which backend a new flow gets."""

from collections import Counter

import numpy as np
import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from world import World

VIP = "192.0.2.10"
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
weight_lists = st.lists(st.integers(0, 5), min_size=3, max_size=3)


def world_of(scheduler: str, weights: list[int], *vips: str) -> World:
    backends = dict(zip(BACKENDS, weights, strict=True))
    return World(service("web", [VIP, *vips], backends, scheduler=scheduler, table_size=251))


def ask(world: World, source: int, vip: str = VIP) -> str:
    packet = IP(src=f"198.51.{source // 250}.{source % 250 + 1}", dst=vip) / UDP(sport=1, dport=2)
    return world.backend_of(packet)


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_a_hash_is_the_same_for_good_and_spreads(scheduler: str) -> None:
    one, other = world_of(scheduler, [1, 1, 1]), world_of(scheduler, [1, 1, 1])
    other.table.secret[:] = 77
    answers = [ask(one, source) for source in range(300)]
    assert [ask(other, source) for source in reversed(range(300))] == answers[::-1]
    assert all(70 <= count <= 130 for count in Counter(answers).values())


def test_destination_hashing_goes_by_the_vip() -> None:
    vips = [f"192.0.2.{n}" for n in range(100, 160)]
    world = world_of("dh", [1, 1, 1], *vips)
    homes = {vip: ask(world, n, vip) for n, vip in enumerate(vips)}
    assert set(homes.values()) == set(BACKENDS)
    assert {vip: ask(world, 100 + n, vip) for n, vip in enumerate(vips)} == homes


def expected(scheduler: str, weights: list[int], flows: list[int]) -> int:
    """The choice by the definition of ipvsadm(8), among backends whose weight is not 0; -1: none."""
    there = [i for i in range(3) if weights[i]]
    if scheduler == "lc":
        return min(there, key=lambda i: (flows[i], i))
    if scheduler == "wlc":
        return min(there, key=lambda i: (flows[i] / weights[i], i))
    if scheduler == "nq" and (idle := [i for i in there if not flows[i]]):
        return idle[0]
    if scheduler in ("sed", "nq"):
        return min(there, key=lambda i: ((flows[i] + 1) / weights[i], i))
    by_weight = sorted(there, key=lambda i: (-weights[i], i))
    return next((i for i in by_weight if flows[i] <= weights[i]), -1)  # ovf


@settings(deadline=None, max_examples=60)
@given(
    scheduler=st.sampled_from(["lc", "wlc", "sed", "nq", "ovf"]),
    weights=weight_lists.filter(any),
    leaving=st.lists(st.integers(0, 2), max_size=20),
)
def test_by_open_flows(scheduler: str, weights: list[int], leaving: list[int]) -> None:
    world = world_of(scheduler, weights)
    ids = [world.backends["web", address] for address in BACKENDS]
    model = [0, 0, 0]
    for source in range(40):
        if source < len(leaving) and model[leaving[source]]:
            model[leaving[source]] -= 1
            world.memory.active[-1, ids[leaving[source]]] -= 1
        choice = expected(scheduler, weights, model)
        if choice < 0:
            packet = IP(src=f"198.51.0.{source + 1}", dst=VIP) / UDP(sport=1, dport=2)
            assert world.request(packet)[0].name == "FULL"
            continue
        assert ask(world, source) == BACKENDS[choice]
        model[choice] += 1
    assert world.memory.active.sum(axis=0)[ids].tolist() == model


def test_of_two_choices_the_less_loaded_is_taken() -> None:
    world = world_of("twos", [1, 1, 0])
    ids = [world.backends["web", address] for address in BACKENDS]
    world.memory.active[-1, ids[0]] = 1_000
    answers = Counter(ask(world, source) for source in range(200))
    assert answers[BACKENDS[2]] == 0
    assert 20 <= answers[BACKENDS[0]] <= 80, "only where both choices are the loaded one"


def test_twos_spreads_by_weight_and_evenly() -> None:
    world = world_of("twos", [1, 2, 1])
    answers = Counter(ask(world, source) for source in range(400))
    assert 180 <= answers[BACKENDS[1]] <= 220


def test_the_next_slot_is_taken_over_all_workers() -> None:
    world = world_of("rr", [1, 1, 1])
    assert [ask(world, source) for source in range(6)] == BACKENDS * 2
    assert int(world.memory.cursors.sum()) == 6
    assert np.count_nonzero(world.memory.cursors) == 1


def test_failover_waits_for_the_first_to_fail() -> None:
    world = world_of("fo", [1, 3, 2])
    assert {ask(world, source) for source in range(10)} == {BACKENDS[1]}
    web = service("web", [VIP], dict(zip(BACKENDS, [1, 3, 2], strict=True)), scheduler="fo", table_size=251)
    world.publish(web, down=(BACKENDS[1],))
    assert {ask(world, source) for source in range(20)} == {BACKENDS[2]}
