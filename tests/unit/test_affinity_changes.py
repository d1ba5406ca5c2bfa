"""What a service remembers of the affinity that it had before."""

import pytest
from building import service

from loaded_mp.config.model import Config
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.supervisor import backends as module
from loaded_mp.supervisor.backends import Backends


def with_affinity(affinity: str) -> Config:
    return Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, affinity=affinity),))


class Clock:
    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_second_change_says_whose_flows_move(clock: Clock) -> None:
    supervised = Backends(new_shared_memory(1_024, 1), with_affinity("connection"))

    def may_move(affinity: str) -> list[str]:
        return list(supervised.may_move(supervised.imagined(with_affinity(affinity))))

    assert may_move("source/24") == []
    supervised.configure(supervised.expand(with_affinity("source/24"), supervised.services))
    clock.now_s += 12
    assert may_move("source") == [
        "service web: IPv4 flows from before its last change of affinity, 12 s ago, move"
    ]
    assert may_move("source/24") == may_move("connection") == []


def test_it_is_forgotten_when_all_flows_of_then_have_ended(clock: Clock) -> None:
    supervised = Backends(new_shared_memory(1_024, 1), with_affinity("connection"))
    supervised.configure(supervised.expand(with_affinity("source"), supervised.services))
    clock.now_s += 7_500
    assert not supervised.forget_affinities()
    clock.now_s += 1
    assert supervised.forget_affinities()
    assert not supervised.forget_affinities()
    assert list(supervised.may_move(supervised.imagined(with_affinity("source/24")))) == []
