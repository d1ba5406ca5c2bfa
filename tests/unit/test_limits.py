"""A backend with as many flows as it may have gets no more, whatever the scheduler."""

from collections import Counter
from ipaddress import ip_address

import numpy as np
import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scapy.layers.inet import IP, UDP
from test_explain import Daemon
from world import World

from loaded_mp.config.model import Backend, Service
from loaded_mp.packet.reasons import Reason
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.supervisor.fullness import Fullness

VIP = "192.0.2.10"
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
#: Schedulers whose choice follows from open flows and weights alone.
PLAIN = ("rr", "lc", "wlc", "sed", "fo")


def limited(scheduler: str, weights: list[int], limits: list[int], **more: object) -> Service:
    """A service whose backends have so many flows at the most; 0: no limit."""
    rows = [
        Backend.model_validate(
            {"address": a, "weight": w, "most_flows": most or None, **(more if most else {})}
        )
        for a, w, most in zip(BACKENDS, weights, limits, strict=True)
    ]
    plain = service("web", [VIP], {BACKENDS[0]: 1}, scheduler=scheduler, table_size=251)
    return plain.model_copy(update={"backends": tuple(rows)})


def source(number: int) -> str:
    return f"198.51.{number // 250}.{number % 250 + 1}"


class Crowd(World):
    """A world in which clients come and go."""

    def __init__(self, web: Service) -> None:
        super().__init__(web)
        self.numbers = [self.backends["web", address] for address in BACKENDS]
        self.clients = 0

    def comes(self) -> int | Reason:
        """The place of the backend that a new client gets, or why it gets none."""
        self.clients += 1
        reason, result = self.request(IP(src=source(self.clients), dst=VIP) / UDP(sport=1, dport=2))
        return reason if reason != Reason.OK else BACKENDS.index(str(ip_address(result[16:20])))

    def goes(self, place: int) -> None:
        """One of a backend's flows ends."""
        self.memory.active[-1, self.numbers[place]] -= 1


class Model:
    """Thresholds as net/netfilter/ipvs/ip_vs_conn.c has them: looked at whenever a flow begins or ends."""

    def __init__(self, scheduler: str, weights: list[int], limits: list[int]) -> None:
        self.scheduler, self.weights, self.limits = scheduler, weights, limits
        self.flows = [0] * len(weights)
        self.full = [False] * len(weights)
        self.last = -1

    def takes(self) -> list[int]:
        return [n for n, weight in enumerate(self.weights) if weight and not self.full[n]]

    def choice(self) -> int:
        there, flows, weights = self.takes(), self.flows, self.weights
        if self.scheduler == "rr":
            return min(there, key=lambda n: (n <= self.last, n))
        if self.scheduler == "lc":
            return min(there, key=lambda n: (flows[n], n))
        if self.scheduler == "fo":
            return min(there, key=lambda n: (-weights[n], n))
        plus = self.scheduler == "sed"
        return min(there, key=lambda n: ((flows[n] + plus) / weights[n], n))

    def comes(self, n: int) -> None:
        self.last = n
        self.flows[n] += 1
        if self.limits[n] and self.flows[n] >= self.limits[n]:
            self.full[n] = True

    def goes(self, n: int) -> None:
        self.flows[n] -= 1
        if self.flows[n] * 4 < self.limits[n] * 3:
            self.full[n] = False


@settings(deadline=None, max_examples=100)
@given(
    scheduler=st.sampled_from([name for name in SCHEDULERS if name != "ovf"]),
    weights=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any),
    limits=st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any),
    leaving=st.lists(st.integers(0, 5), max_size=40),
)
def test_full_backends_get_nothing(
    scheduler: str, weights: list[int], limits: list[int], leaving: list[int]
) -> None:
    crowd, model = Crowd(limited(scheduler, weights, limits)), Model(scheduler, weights, limits)
    for turn in range(30):
        got = crowd.comes()
        if not model.takes():
            assert got == Reason.FULL
        else:
            assert got in model.takes()
            if scheduler in PLAIN:
                assert got == model.choice()
            model.comes(int(got))
        if turn < len(leaving) and leaving[turn] < 3 and model.flows[leaving[turn]]:
            crowd.goes(leaving[turn])
            model.goes(leaving[turn])


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_a_hashed_client_has_a_substitute_for_good(scheduler: str) -> None:
    one = Crowd(limited(scheduler, [1, 1, 1], [30, 0, 0]))
    before = [one.comes() for _ in range(400)]
    assert Counter(before)[0] == 30
    other = Crowd(limited(scheduler, [1, 1, 1], [30, 0, 0]))
    other.memory.table.secret[:] = 77
    assert [other.comes() for _ in range(400)] == before
    free = Crowd(limited(scheduler, [1, 1, 1], [1_000, 0, 0]))
    moved = [now for was, now in zip(before, (free.comes() for _ in range(400)), strict=True) if was != now]
    assert set(moved) == {0}, "only who would have gone to the full one goes elsewhere"
    assert len(moved) > 60


def test_full_is_told_from_down_and_rejected_if_so_configured() -> None:
    crowd = Crowd(limited("wrr", [1, 1, 1], [1, 1, 1]))
    assert sorted(map(int, (crowd.comes() for _ in range(3)))) == [0, 1, 2]
    assert crowd.comes() == Reason.FULL
    crowd.publish(limited("wrr", [1, 1, 1], [1, 1, 1]), down=tuple(BACKENDS))
    assert crowd.comes() == Reason.NO_BACKEND
    crowd.publish(limited("wrr", [1, 1, 1], [1, 1, 1]).model_copy(update={"all_down": "reject"}))
    assert crowd.comes() == Reason.REJECTED


def test_other_limits_hold_at_once() -> None:
    crowd = Crowd(limited("lc", [1, 1, 1], [2, 2, 2]))
    assert Counter(crowd.comes() for _ in range(7)) == {0: 2, 1: 2, 2: 2, Reason.FULL: 1}
    crowd.publish(limited("lc", [1, 1, 1], [0, 2, 2]))
    assert Counter(crowd.comes() for _ in range(4)) == {0: 4}
    crowd.publish(limited("lc", [1, 1, 1], [3, 3, 3], fewest_flows=1))
    assert crowd.comes() == Reason.FULL
    crowd.goes(1)
    crowd.goes(1)
    assert [crowd.comes() for _ in range(4)] == [1, 1, 1, Reason.FULL]


def test_what_is_shown_is_what_holds() -> None:
    web = limited("wlc", [1, 1, 1], [4, 0, 0], fewest_flows=2)
    world = Daemon(web)
    for number in range(12):
        world.happens(source(number), VIP, "udp", 53)
    said = world.explain("203.0.113.9", VIP, "udp", 53)
    assert [each.left_out for each in said.candidates] == ["full until it has fewer than 2 flows", "", ""]
    first = next(iter(world.supervised.services.part_of))
    assert world.supervised.flows(first) == 4
    world.memory.active[-1, first] -= 3
    assert world.memory.full[first] == 1, "nobody has asked since"
    assert world.explain("203.0.113.9", VIP, "udp", 53).candidates[0].left_out == ""
    assert world.memory.full[first] == 1, "saying so changes nothing"


def test_nobody_takes_all() -> None:
    world = Daemon(limited("rr", [1, 1, 1], [1, 1, 1]))
    for number in range(3):
        world.happens(source(number), VIP)
    said = world.explain("203.0.113.9", VIP)
    assert (said.backend, said.why) == ("", "no backend may have more flows: the packet is dropped")
    assert world.happens("203.0.113.9", VIP) == Reason.FULL
    assert not np.any(world.memory.active[:, list(world.supervised.services.part_of)].sum(axis=0) > 1)


def test_limits_that_cannot_be_meant() -> None:
    with pytest.raises(ValidationError, match="expected most_flows beside it"):
        Backend.model_validate({"address": "10.0.0.1", "fewest_flows": 3})
    with pytest.raises(ValidationError, match="expected most_flows or less"):
        Backend.model_validate({"address": "10.0.0.1", "most_flows": 2, "fewest_flows": 3})
    dns = {"name": "dns", "vips": [VIP], "listen": ["udp/53"], "affinity": "none"}
    with pytest.raises(ValidationError, match="it has no flows to count"):
        Service.model_validate({**dns, "backends": [{"address": "10.0.0.1", "most_flows": 2}]})


def test_who_is_full_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = Daemon(limited("lc", [1, 1, 1], [1, 3, 0]))
    said = Fullness(world.supervised)
    caplog.set_level("INFO")
    for number in range(4):
        world.happens(source(number), VIP)
    said.look()
    said.look()
    assert ["backend-full" in line and "10.0.0.1" in line for line in caplog.messages] == [True]
    world.memory.active[-1, next(iter(world.supervised.services.part_of))] -= 1
    said.look()
    assert "event=backend-not-full service=web backend=10.0.0.1 flows=0" in caplog.messages[-1]
    assert len(caplog.messages) == 2
