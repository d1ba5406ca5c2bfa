"""Destinations that keep their backends, against the pseudo code in net/netfilter/ipvs/ip_vs_lblc(r).c."""

import numpy as np
import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from test_explain import Daemon
from world import World

from loaded_mp.datapath.locality import KEPT_S
from loaded_mp.flows.table import MAX_VALUE, expire
from loaded_mp.memory.snapshot import HOME, MAX_BACKENDS
from loaded_mp.supervisor.sweep import Count, Forget

VIPS = [f"192.0.2.{n}" for n in range(10, 14)]
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


class Destinations(World):
    """A world of a service with several VIPs."""

    def __init__(self, scheduler: str, weights: list[int]) -> None:
        self.web = service("web", VIPS, dict(zip(BACKENDS, weights, strict=True)), scheduler=scheduler)
        super().__init__(self.web)
        self.numbers = [self.backends["web", address] for address in BACKENDS]
        self.clients = 0

    def comes(self, vip: int) -> int:
        """The place of the backend that a new client of a VIP gets."""
        self.clients += 1
        packet = IP(src=f"198.51.{self.clients // 250}.{self.clients % 250 + 1}", dst=VIPS[vip])
        return BACKENDS.index(self.backend_of(packet / UDP(sport=1, dport=2)))

    def goes(self, place: int) -> None:
        """One of a backend's flows ends."""
        self.memory.active[-1, self.numbers[place]] -= 1

    def homes(self) -> int:
        """How many backends destinations have."""
        values = self.table.words & np.uint64(MAX_VALUE)
        return int(np.count_nonzero((values >= HOME) & (values < HOME + MAX_BACKENDS)))


class Model:
    """Sets of destinations as in the kernel's pseudo code; lblc has sets of one."""

    def __init__(self, replicated: bool, weights: list[int]) -> None:
        self.replicated, self.weights = replicated, weights
        self.flows = [0] * len(weights)
        self.sets: dict[int, list[int]] = {}

    def load(self, n: int) -> float:
        return self.flows[n] / self.weights[n]

    def choice(self, vip: int) -> int:
        there = [n for n, weight in enumerate(self.weights) if weight]
        mine = [n for n in reversed(self.sets.get(vip, [])) if n in there]  # a list grows at its head
        if mine:
            best = min(mine, key=self.load)
            idle = any(2 * self.flows[n] < self.weights[n] for n in there)
            if self.flows[best] <= self.weights[best] or not idle:
                return best
        best = min(there, key=lambda n: (self.load(n), n))
        known = self.sets.setdefault(vip, [])
        if not self.replicated:
            known.clear()
        if best not in known:
            known.append(best)
        return best


@settings(deadline=None, max_examples=60)
@given(
    replicated=st.booleans(),
    weights=st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=10, max_size=40),
)
def test_choices_are_the_kernels(replicated: bool, weights: list[int], steps: list[tuple[int, int]]) -> None:
    world = Destinations("lblcr" if replicated else "lblc", weights)
    model = Model(replicated, weights)
    for vip, leaving in steps:
        expected = model.choice(vip)
        assert world.comes(vip) == expected
        model.flows[expected] += 1
        if leaving < 3 and model.flows[leaving]:
            model.flows[leaving] -= 1
            world.goes(leaving)
    assert world.memory.active.sum(axis=0)[world.numbers].tolist() == model.flows
    assert world.homes() == sum(map(len, model.sets.values()))


@pytest.mark.parametrize("scheduler", ["lblc", "lblcr"])
def test_a_vip_leaves_a_backend_that_is_down(scheduler: str) -> None:
    world = Destinations(scheduler, [10, 10, 10])
    homes = [world.comes(vip) for vip in range(4)]
    assert homes == [0, 1, 2, 0]
    assert [world.comes(vip) for vip in range(4)] == homes
    world.publish(world.web, down=(BACKENDS[0],))
    moved = [world.comes(vip) for vip in range(4)]
    assert (moved[1], moved[2]) == (1, 2)
    assert 0 not in moved


def test_a_replica_leaves_when_none_came_for_a_day() -> None:
    world = Destinations("lblcr", [3, 3, 3])
    assert [world.comes(0) for _ in range(5)] == [0, 0, 0, 0, 1]
    assert world.homes() == 2
    removed = np.zeros(MAX_VALUE + 1, np.int64)
    for _ in range(3):
        world.now_s += KEPT_S // 2
        world.comes(0)
        expire(world.table, 0, world.table.words.size, world.now_s, removed)
    assert world.homes() == 1
    world.now_s += 2 * KEPT_S
    expire(world.table, 0, world.table.words.size, world.now_s, removed)
    assert world.homes() == 0


def test_homes_are_no_open_flows() -> None:
    world = Destinations("lblc", [10, 10, 10])
    for vip in range(4):
        world.comes(vip)
    count = Count(world.memory)
    count.begin()
    count.visit(0, world.table.words.size)
    count.end()
    assert count.counts[world.numbers].tolist() == [2, 1, 1]
    assert world.memory.active.sum(axis=0)[world.numbers].tolist() == [2, 1, 1]
    Forget(world.table, world.numbers[:1]).visit(0, world.table.words.size)
    assert world.homes() == 2


def test_an_explanation_enters_no_home() -> None:
    world = Daemon(service("web", VIPS, dict.fromkeys(BACKENDS, 10), scheduler="lblc"))
    said = [world.explain("198.51.100.7", vip).address for vip in VIPS]
    assert not world.table.words.any()
    assert said == BACKENDS[:1] * 4
    came = [world.happens(f"198.51.100.{n}", vip) for n, vip in enumerate(VIPS, 7)]
    assert came == [*BACKENDS, BACKENDS[0]]
    assert [world.explain("198.51.100.99", vip).address for vip in VIPS] == came


def test_a_vip_keeps_its_other_backends_when_one_is_taken_away() -> None:
    world = Destinations("lblcr", [3, 3, 3])
    assert [world.comes(0) for _ in range(5)] == [0, 0, 0, 0, 1]
    Forget(world.table, world.numbers[:1]).visit(0, world.table.words.size)
    assert world.homes() == 1
    assert world.comes(0) == 1
    for _ in range(4):
        world.goes(1)
    assert [world.comes(0) for _ in range(4)] == [1] * 4
