"""Backends that workers see fail."""

from typing import Any

import numpy as np
import pytest
from building import service

from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.config.model import Config, Observe
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.observation import Observation

CONNECTIONS, REFUSALS, ERRORS = BackendCounter.CONNECTIONS, BackendCounter.REFUSALS, BackendCounter.ERRORS
ANSWERS = BackendCounter.TO_CLIENT_PACKETS


class Scene:
    """A service of four backends, of which two may be down by observation."""

    def __init__(self, **observe: Any) -> None:
        web = service(
            "web",
            ["192.0.2.10"],
            {f"10.0.0.{n}": 1 for n in range(1, 5)},
            checks=[TcpCheck(port=80)],
            observe=Observe(**observe),
        )
        self.memory: SharedMemory = new_shared_memory(1_024, 2)
        self.backends = Backends(self.memory, Config(services=(web,)))
        self.down: list[tuple[int, str]] = []
        self._observation = Observation(self.memory, self.backends, self._told)
        self.now_s = 100.0
        self.look()

    def _told(self, number: int, cause: str) -> None:
        self.down.append((number, cause))
        self.backends.states[number].observed(cause)

    def count(self, number: int, **counted: int) -> None:
        for worker, (name, more) in enumerate(counted.items()):
            self.memory.backends[worker % 2, number, BackendCounter[name.upper()]] += np.uint64(more)

    def look(self, later_ms: int = 0) -> list[tuple[int, str]]:
        self.now_s += later_ms / 1000
        self._observation.look(self.backends.services.parts, self.now_s)
        found, self.down = self.down, []
        return found


def test_connections_without_an_answer() -> None:
    scene = Scene()
    scene.count(1, connections=3)
    assert scene.look() == []
    assert scene.look(149) == []
    assert scene.look(2) == [(1, "3 connections got no answer for 150 ms")]
    assert not scene.backends.states[1].up
    assert scene.look(1_000) == []


def test_an_answer_in_time() -> None:
    scene = Scene()
    scene.count(1, connections=5)
    scene.look()
    scene.count(1, to_client_packets=1)
    assert scene.look(149) == []
    assert scene.look(1_000) == []
    scene.count(1, connections=2)
    assert scene.look() == []
    assert scene.look(1_000) == [], "two are fewer than three"


@pytest.mark.parametrize(("name", "text"), [("refusals", "refused"), ("errors", "ICMP errors")])
def test_refusals_and_errors_count_at_once_where_nothing_else_comes(name: str, text: str) -> None:
    scene = Scene()
    scene.count(0, connections=3, to_client_packets=3)
    scene.count(0, **{name: 3})
    ((number, cause),) = scene.look()
    assert (number, text in cause) == (0, True)
    scene.count(1, **{name: 2})
    scene.count(1, connections=2, to_client_packets=2)
    assert scene.look() == []
    scene.count(1, to_client_packets=1)
    assert scene.look() == []
    scene.count(1, connections=2, to_client_packets=2)
    scene.count(1, **{name: 2})
    assert scene.look() == [], "one was accepted between them"


def test_resets_count_where_no_data_comes() -> None:
    scene = Scene()
    for _ in range(3):
        assert scene.look() == []
        scene.count(0, connections=1, to_client_packets=2, resets=1)
    assert scene.look() == [(0, "3 connections were reset before any data came")]
    scene.count(1, connections=2, to_client_packets=4, resets=2)
    scene.look()
    scene.count(1, connections=1, to_client_packets=2, words=1)
    scene.look()
    scene.count(1, connections=2, to_client_packets=4, resets=2)
    assert scene.look() == [], "one was served between them"


def test_no_more_than_a_share_goes_down(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(most_share=0.5)
    for number in range(4):
        scene.count(number, connections=3, to_client_packets=3)
        scene.count(number, refusals=3)
    assert [number for number, _ in scene.look()] == [0, 1]
    for _ in range(5):
        scene.look(100)
    assert caplog.text.count("backend-spared") == 2
    assert [state.up for state in scene.backends.states.values()] == [False, False, True, True]
