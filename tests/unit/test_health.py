"""Rise and fall without sockets; the checker against listeners on loopback."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaded_mp.config.model import Address, Check
from loaded_mp.health import checker as checker_module
from loaded_mp.health.checker import Checker, Transition
from loaded_mp.health.rise_fall import Health
from loaded_mp.health.tcp import connect

DEADLINE_S = 10
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
both = pytest.mark.parametrize("version", [4, 6])


def after(results: str, rise: int, fall: int) -> str:
    """The states (u, d) after each of the results (+, -)."""
    health, states = Health(), ""
    for result in results:
        health = health.after(result == "+", rise, fall)
        states += "u" if health.up else "d"
    return states


@pytest.mark.parametrize(
    ("results", "states"),
    [
        ("-", "d"),
        ("+", "u"),
        ("+---", "uuud"),
        ("+--+--+---", "uuuuuuuuud"),
        ("-++", "ddu"),
        ("-+-++", "ddddu"),
        ("-++--+---", "dduuuuuud"),
    ],
)
def test_rise_and_fall(results: str, states: str) -> None:
    assert after(results, rise=2, fall=3) == states


@given(results=st.text("+-", max_size=60), rise=st.integers(1, 5), fall=st.integers(1, 5))
def test_a_change_needs_as_many_results_in_a_row_as_it_says(results: str, rise: int, fall: int) -> None:
    states = "u" + after(results, rise, fall)
    for i in range(1, len(states)):
        if states[i] == states[i - 1]:
            continue
        sign, needed = ("+", rise) if states[i] == "u" else ("-", fall)
        if i == 1:
            assert results[0] == "-"
        else:
            assert results[:i].endswith(sign * needed)
    if len(results) >= fall and results.endswith("-" * fall):
        assert states[-1] == "d"
    if len(results) >= rise and results.endswith("+" * rise):
        assert states[-1] == "u"


@contextmanager
def listener(version: int, port: int = 0, backlog: int = 128) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOOPBACK[version], port))
        server.listen(backlog)
        server.setblocking(False)
        yield server


def free_port(version: int) -> int:
    with listener(version) as server:
        return int(server.getsockname()[1])


def target(version: int, port: int, **more: float) -> tuple[Address, Check]:
    settings = {"interval_s": 0.02, "timeout_s": 5, "rise": 2, "fall": 2, **more}
    return ip_address(LOOPBACK[version]), Check.model_validate({"port": port, **settings})


class Watch:
    """A running checker and what it told."""

    def __init__(self, targets: checker_module.Targets) -> None:
        self._queue: asyncio.Queue[Transition] = asyncio.Queue()
        self.checker = Checker(targets, self._queue.put_nowait)

    async def next(self) -> Transition:
        return await asyncio.wait_for(self._queue.get(), DEADLINE_S)

    def told(self) -> int:
        return self._queue.qsize()


def watch(targets: checker_module.Targets, body: Callable[[Watch], Awaitable[None]]) -> None:
    async def main() -> None:
        watched = Watch(targets)
        task = asyncio.create_task(watched.checker.run())
        try:
            await body(watched)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def accept(server: socket.socket) -> socket.socket:
    loop = asyncio.get_running_loop()
    return (await asyncio.wait_for(loop.sock_accept(server), DEADLINE_S))[0]


@both
def test_down_and_up_with_causes(version: int) -> None:
    port = free_port(version)
    name = f"127.0.0.1:{port}" if version == 4 else f"[::1]:{port}"

    async def body(watched: Watch) -> None:
        assert watched.checker.is_up(7)
        assert await watched.next() == Transition(7, False, f"connect to {name}: refused")
        assert not watched.checker.is_up(7)
        with listener(version, port):
            assert await watched.next() == Transition(7, True, f"connect to {name}: accepted")
        assert await watched.next() == Transition(7, False, f"connect to {name}: refused")

    watch({7: target(version, port)}, body)


@both
def test_a_connection_is_reset_and_leaves_nothing(version: int) -> None:
    async def body() -> None:
        with listener(version) as server:
            address, port = server.getsockname()[:2]
            assert await connect(ip_address(address), port, DEADLINE_S) is None
            with await accept(server) as connection, pytest.raises(ConnectionResetError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), DEADLINE_S)

    asyncio.run(body())


def test_what_does_not_answer_is_cut_off() -> None:
    async def body() -> None:
        with listener(4, backlog=0) as server:
            loop = asyncio.get_running_loop()
            waiting = [socket.socket() for _ in range(4)]  # the queue of the listener, and more
            for each in waiting:
                each.setblocking(False)
                with suppress(BlockingIOError):
                    each.connect(server.getsockname())
            started_s = loop.time()
            answer = await connect(ip_address("127.0.0.1"), server.getsockname()[1], 0.1)
            assert answer == "no answer within 0.1 s"
            assert 0.09 < loop.time() - started_s < DEADLINE_S
            for each in waiting:
                each.close()

    asyncio.run(body())


def test_what_cannot_be_reached_says_what_the_kernel_says() -> None:
    assert asyncio.run(connect(ip_address("255.255.255.255"), 80, DEADLINE_S)) == "network is unreachable"


def test_a_reload_keeps_health_and_follows_the_targets() -> None:
    port = free_port(4)

    async def body(watched: Watch) -> None:
        first = await watched.next(), await watched.next()
        assert {each.backend for each in first} == {1, 2}
        with listener(4, port) as server:
            slow = target(4, port, interval_s=60)
            watched.checker.update({1: target(4, port, rise=5), 3: slow})
            assert not watched.checker.is_up(1)
            assert watched.checker.is_up(2)
            assert watched.checker.is_up(3)
            assert await watched.next() == Transition(1, True, f"connect to 127.0.0.1:{port}: accepted")
            watched.checker.update({3: slow})
            while True:
                with suppress(BlockingIOError):
                    server.accept()[0].close()
                    continue
                break
        watched.checker.update({3: slow, 4: target(4, port)})
        assert (await watched.next())[:2] == (4, False)
        with listener(4, port):
            assert (await watched.next())[:2] == (4, True)
        assert (await watched.next())[:2] == (4, False)
        assert watched.told() == 0

    watch({1: target(4, port), 2: target(4, port)}, body)


def test_first_checks_are_spread_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    under_way = most = 0

    async def fake(address: Address, port: int, timeout_s: float) -> None:
        nonlocal under_way, most
        starts.append(asyncio.get_running_loop().time())
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1

    monkeypatch.setattr(checker_module, "connect", fake)
    monkeypatch.setattr(checker_module, "MAX_IN_FLIGHT", 2)

    async def body(_: Watch) -> None:
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while len(starts) < 20:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)

    watch({number: target(4, 1, interval_s=0.4) for number in range(20)}, body)
    assert most == 2
    assert starts[0] < starts[10] < starts[19]
    assert starts[19] - starts[0] > 0.3
