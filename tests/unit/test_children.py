"""Workers that do nothing, under a clock that tests set."""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from loaded_mp.lab.wait import wait_until
from loaded_mp.supervisor.children import Children, StartError
from loaded_mp.worker import Place

DEADLINE_S = 10.0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """Children, their clock, and when each was last heard of."""

    def __init__(self, work: Callable[[Place, bool], object], number: int = 2) -> None:
        self.clock = Clock()
        self.silent: dict[int, float] = {}
        self.nowhere = os.open("/dev/null", os.O_RDONLY)
        places = [Place(n, n, self.nowhere, self.nowhere, None, "nobody") for n in range(number)]
        self.children = Children(places, work, self._heard_s, self.clock)

    def _heard_s(self, number: int) -> float:
        return self.silent.get(number, self.clock.now_s)

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self.children.children]

    def start(self) -> None:
        asyncio.run(self.children.start())

    def kill(self, number: int) -> None:
        """Kill a worker and take note of its end."""
        pid = self.pids[number]
        os.kill(pid, signal.SIGKILL)
        self.until_noticed(number, pid)

    def until_noticed(self, number: int, pid: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.pids[number] == pid:
            assert time.monotonic() < end
            self.children.reap()

    def close(self) -> None:
        for pid in self.pids:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        os.close(self.nowhere)


def sleep(_place: Place, _replacing: bool) -> None:
    time.sleep(60)


def has_name(pid: int, name: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == name


@pytest.fixture
def world() -> Iterator[World]:
    made = World(sleep)
    yield made
    made.close()


def test_all_are_started_and_named(world: World) -> None:
    world.start()
    assert len(set(world.pids)) == 2
    for number, pid in enumerate(world.pids):
        wait_until(partial(has_name, pid, f"loaded-mp-w{number}"), "it has its name")


def test_a_start_that_fails_is_said() -> None:
    made = World(lambda place, replacing: os._exit(3))
    made.silent = {0: 0.0, 1: 0.0}
    with pytest.raises(StartError):
        made.start()
    for child in made.children.children:
        child.leaving = True
    made.close()


def test_workers_join_and_leave_while_the_others_go_on(world: World) -> None:
    world.start()
    pids = world.pids
    places = [child.place for child in world.children.children]
    joining = [Place(n, n, world.nowhere, world.nowhere, None, "nobody") for n in (2, 3)]
    asyncio.run(world.children.join(joining))
    assert world.pids[:2] == pids
    assert world.children.running() == [0, 1, 2, 3]
    for number, pid in enumerate(world.pids):
        # What a signal raises before is lost in what Python does after a fork.
        wait_until(partial(has_name, pid, f"loaded-mp-w{number}"), "it is up")
    asyncio.run(world.children.leave(1))
    assert world.pids == pids[:1]
    world.children.look()
    assert [child.place for child in world.children.children] == places[:1]


def test_back_off_grows_and_is_forgotten(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.start()
    pauses = []
    for _ in range(10):
        world.kill(0)
        child = world.children.children[0]
        pause = child.due_s - world.clock.now_s if not child.pid else 0.0
        pauses.append(round(pause, 3))
        world.clock.now_s += pause - 0.001
        if pause:
            world.children.look()
            assert not child.pid, "not before it is due"
        world.clock.now_s += 0.002
        world.children.look()
        assert child.pid
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    world.clock.now_s += 10
    world.kill(0)
    assert world.children.children[0].pid, "it lived long, so it is replaced at once"
    assert world.children.children[1].restarts == 0
    assert caplog.text.count("event=worker-died") == 11


def test_one_that_hangs_is_killed_and_replaced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.start()
    hanging, other = world.pids
    world.silent[0] = world.clock.now_s
    for _ in range(8):
        world.clock.now_s += 0.25
        world.children.look()
        assert world.pids == [hanging, other]
    world.clock.now_s += 0.25
    world.children.look()
    world.until_noticed(0, hanging)
    assert "event=worker-hangs worker=0" in caplog.text
    assert world.pids[1] == other
    assert world.children.children[0].restarts == 1


def test_who_was_held_up_does_not_blame_others(world: World) -> None:
    world.start()
    before = world.pids
    world.silent = {0: world.clock.now_s, 1: world.clock.now_s}
    world.clock.now_s += 30
    world.children.look()
    world.children.reap()
    assert world.pids == before
    world.silent = {}
    world.clock.now_s += 0.25
    world.children.look()
    assert world.pids == before


def test_a_replacement_knows_that_it_is_one(tmp_path: object) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)

    def say(place: Place, replacing: bool) -> None:
        os.write(place.descriptor, b"again" if replacing else b"first")
        time.sleep(60)

    clock = Clock()
    children = Children([Place(0, 0, writer, writer, None, "nobody")], say, lambda _: clock.now_s, clock)
    asyncio.run(children.start())
    assert os.read(reader, 5) == b"first"
    os.kill(children.children[0].pid, signal.SIGKILL)
    pid = children.children[0].pid
    while children.children[0].pid == pid:
        children.reap()
    assert os.read(reader, 5) == b"again"
    asyncio.run(children.stop())
    os.close(reader)
    os.close(writer)


def test_a_fork_that_fails_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.start()
    child = world.children.children[0]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", failing_fork)
        world.kill(0)
        assert child.pid == 0
        assert 'event=fork-failed worker=0 cause="Resource temporarily unavailable"' in caplog.text
        world.clock.now_s += 1
        world.children.look()
        assert child.pid == 0
    world.clock.now_s += 1
    world.children.look()
    assert child.pid
    assert world.children.children[1].pid


def failing_fork() -> int:
    raise OSError(errno.EAGAIN, "again")


def ignores_sigterm(pid: int) -> bool:
    ignored = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:")
    )
    return bool(int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_stop_is_bounded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def stubborn(_place: Place, _replacing: bool) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    made = World(stubborn, 1)

    async def stop() -> None:
        await made.children.start()
        wait_until(lambda: ignores_sigterm(made.pids[0]), "it ignores SIGTERM")
        stopping = asyncio.create_task(made.children.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        made.clock.now_s += 60
        async with asyncio.timeout(DEADLINE_S):
            await stopping

    with caplog.at_level(logging.ERROR):
        asyncio.run(stop())
    assert made.pids == [0]
    assert made.children.children[0].restarts == 0
    made.close()
