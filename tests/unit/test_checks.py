"""Rise and fall without sockets; the checker against listeners on loopback."""

import asyncio
import errno
import itertools
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from building import service
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loaded_mp.checks import runner as runner_module
from loaded_mp.checks.agent import AgentCheck
from loaded_mp.checks.check import Check, Fault, Finding, OneOfTypes
from loaded_mp.checks.health import Health
from loaded_mp.checks.runner import Result, Runner, Target, Targets
from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.config.model import Config, Service
from loaded_mp.config.toml import parse_toml
from loaded_mp.fields import Endpoint, Settings
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.status import Wanted
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.handover import Adopted, read_state
from loaded_mp.supervisor.state import BackendState, Change

pytestmark = pytest.mark.uncompiled

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


class Transition(NamedTuple):
    backend: int
    up: bool
    cause: str


def checked(*checks: Check, needed: str = "all") -> Service:
    """A service whose backends are checked so."""
    web = service("web", ["192.0.2.10"], {"10.0.0.1": 1})
    return web.model_copy(update={"checks": checks, "checks_needed": needed})


def target(number: int, version: int, port: int, **more: float) -> Target:
    settings = {"interval_s": 0.02, "timeout_s": 5, "rise": 2, "fall": 2, **more}
    check = TcpCheck.model_validate({"port": port, **settings})
    return Target(number, Endpoint(ip_address(LOOPBACK[version]), port), check)


class Watch:
    """A running runner, and what its results make of backends."""

    def __init__(self, targets: Targets) -> None:
        self._queue: asyncio.Queue[Transition] = asyncio.Queue()
        self._states: dict[int, BackendState] = {}
        self.results: list[Result] = []
        self.runner = Runner(targets, self._heard)
        self._follow(targets)

    def _follow(self, targets: Targets) -> None:
        checks: dict[int, list[Check]] = {}
        for each in targets:
            checks.setdefault(each.backend, []).append(each.check)
        self._states = {number: self._states.get(number, BackendState()) for number in checks}
        for number, state in self._states.items():
            state.follow(checked(*checks[number]))

    def _heard(self, result: Result) -> None:
        self.results.append(result)
        state = self._states[result.backend]
        if state.heard(result):
            self._queue.put_nowait(Transition(result.backend, state.up, result.text))

    def update(self, targets: Targets) -> None:
        self._follow(targets)
        self.runner.update(targets)

    def is_up(self, number: int) -> bool:
        return self._states[number].up

    async def next(self) -> Transition:
        return await asyncio.wait_for(self._queue.get(), DEADLINE_S)

    def told(self) -> int:
        return self._queue.qsize()


def watch(targets: Targets, body: Callable[[Watch], Awaitable[None]]) -> None:
    async def main() -> None:
        watched = Watch(targets)
        task = asyncio.create_task(watched.runner.run())
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
        assert watched.is_up(7)
        assert await watched.next() == Transition(7, False, f"connect to {name}: refused")
        assert not watched.is_up(7)
        with listener(version, port):
            assert await watched.next() == Transition(7, True, f"connect to {name}: accepted")
        assert await watched.next() == Transition(7, False, f"connect to {name}: refused")

    watch([target(7, version, port)], body)


@both
def test_a_connection_is_reset_and_leaves_nothing(version: int) -> None:
    async def body() -> None:
        with listener(version) as server:
            address, port = server.getsockname()[:2]
            assert await TcpCheck().attempt(Endpoint(ip_address(address), port)) == Finding(said="accepted")
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
            check = TcpCheck(timeout_s=0.1)
            asked = Endpoint(ip_address("127.0.0.1"), server.getsockname()[1])
            result = await Runner([], lambda _: None)._ask(Target(7, asked, check), 0)
            assert result
            assert result.finding.fault == "no answer within 0.1 s"
            assert 0.09 < loop.time() - started_s < DEADLINE_S
            for each in waiting:
                each.close()

    asyncio.run(body())


def test_what_cannot_be_reached_says_what_the_kernel_says() -> None:
    async def ask() -> Result | None:
        target = Target(7, Endpoint.read("255.255.255.255:80"), TcpCheck())
        return await Runner([], lambda _: None)._ask(target, 0)

    result = asyncio.run(ask())
    assert result
    assert result.text == "connect to 255.255.255.255:80: network is unreachable"


def test_a_reload_keeps_health_and_follows_the_targets() -> None:
    port = free_port(4)

    async def body(watched: Watch) -> None:
        first = await watched.next(), await watched.next()
        assert {each.backend for each in first} == {1, 2}
        with listener(4, port) as server:
            slow = target(3, 4, port, interval_s=60)
            watched.update([target(1, 4, port, rise=5), slow])
            assert not watched.is_up(1)
            assert watched.is_up(3)
            assert await watched.next() == Transition(1, True, f"connect to 127.0.0.1:{port}: accepted")
            watched.update([slow])
            while True:
                with suppress(BlockingIOError):
                    server.accept()[0].close()
                    continue
                break
        watched.update([slow, target(4, 4, port)])
        assert (await watched.next())[:2] == (4, False)
        with listener(4, port):
            assert (await watched.next())[:2] == (4, True)
        assert (await watched.next())[:2] == (4, False)
        assert watched.told() == 0

    watch([target(1, 4, port), target(2, 4, port)], body)


def test_first_checks_are_spread_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    under_way = most = 0

    class Slow(Check):
        type: Literal["slow"] = "slow"

        async def attempt(self, endpoint: Endpoint) -> Finding:
            nonlocal under_way, most
            starts.append(asyncio.get_running_loop().time())
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.05)
            under_way -= 1
            return Finding()

        def question(self, endpoint: Endpoint) -> str:
            return "slow"

    monkeypatch.setattr(runner_module, "MAX_IN_FLIGHT", 2)

    async def body(_: Watch) -> None:
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while len(starts) < 20:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)

    slow = Slow(interval_s=0.4, timeout_s=5)
    watch([Target(number, Endpoint.read("127.0.0.1"), slow) for number in range(20)], body)
    assert most == 2
    assert starts[0] < starts[10] < starts[19]
    assert starts[19] - starts[0] > 0.3


class Told(Check):
    """Does what it is told."""

    type: Literal["told"] = "told"

    async def attempt(self, endpoint: Endpoint) -> Finding:
        return await TOLD[str(endpoint)]()

    def question(self, endpoint: Endpoint) -> str:
        return f"ask {endpoint}"


TOLD: dict[str, Callable[[], Awaitable[Finding]]] = {}


def told(number: int, what: Callable[[], Awaitable[Finding]], **more: Any) -> Target:
    address = f"10.0.0.{number}"
    TOLD[address] = what
    return Target(number, Endpoint.read(address), Told(**{"interval_s": 0.01, "timeout_s": 5, **more}))


def failing(error: Exception) -> Callable[[], Awaitable[Finding]]:
    async def fail() -> Finding:
        raise error

    return fail


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_this_machine_lacks_is_no_backends_fault(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    async def no_descriptor() -> Finding:
        nonlocal asked
        asked += 1
        raise OSError(errno.EMFILE, "Too many open files")

    async def body(watched: Watch) -> None:
        await until(lambda: asked > 5)
        assert watched.results == []
        assert watched.is_up(1)

    watch([told(1, no_descriptor)], body)
    assert caplog.text.count("event=checks-hindered") == 1


def test_a_check_that_breaks_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def fine() -> Finding:
        return Finding()

    async def body(watched: Watch) -> None:
        await until(lambda: len({result.backend for result in watched.results[-9:]}) == 2)
        broken = next(result for result in watched.results if result.backend == 1)
        assert broken.text == "ask 10.0.0.1: ZeroDivisionError: oh"

    watch([told(1, failing(ZeroDivisionError("oh"))), told(2, fine)], body)
    assert "event=check-broken" in caplog.text


def test_no_result_comes_of_a_target_that_is_gone() -> None:
    going_on, over = asyncio.Event(), asyncio.Event()

    async def late() -> Finding:
        going_on.set()
        with suppress(asyncio.CancelledError):
            await over.wait()
        raise Fault("too late")

    async def body(watched: Watch) -> None:
        await asyncio.wait_for(going_on.wait(), DEADLINE_S)
        watched.update([])
        over.set()
        await asyncio.sleep(0.05)
        assert watched.results == []

    watch([told(1, late)], body)


def test_a_configuration_takes_checks_of_several_types() -> None:
    class Both(Settings):
        check: Annotated[Check, OneOfTypes((TcpCheck, Told))]

    assert Both.model_validate({"check": {"port": 80}}).check == TcpCheck(port=80)
    assert Both.model_validate({"check": {"type": "tcp", "port": 80}}).check == TcpCheck(port=80)
    assert Both.model_validate({"check": {}}).check == TcpCheck()
    assert Both.model_validate({"check": {"type": "told", "rise": 7}}).check == Told(rise=7)
    for wrong in ({"type": "htp"}, {"type": "told", "port": 80}, {"type": 7}):
        with pytest.raises(ValidationError):
            Both.model_validate({"check": wrong})


def test_it_is_asked_faster_while_results_change() -> None:
    answers = iter([True, True, True, False, False, True, True])
    moments: list[float] = []

    async def answer() -> Finding:
        moments.append(asyncio.get_running_loop().time())
        if next(answers, True):
            return Finding()
        raise Fault("down")

    async def body(_: Watch) -> None:
        await until(lambda: len(moments) > 7)

    watch([told(1, answer, interval_s=0.4, fast_interval_s=0.02, rise=2, fall=2)], body)
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    assert ["fast" if pause_s < 0.2 else "slow" for pause_s in pauses[:7]] == [
        "fast",  # a first success
        "slow",
        "slow",
        "fast",  # a first failure
        "slow",
        "fast",
        "slow",
    ]


def test_intervals_differ_by_a_twentieth_and_no_more() -> None:
    moments: list[float] = []

    async def answer() -> Finding:
        moments.append(asyncio.get_running_loop().time())
        return Finding()

    async def body(_: Watch) -> None:
        await until(lambda: len(moments) > 12)

    watch([told(1, answer, interval_s=0.2)], body)
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    assert len({round(each, 3) for each in pauses}) > 3
    # What the loop took is not added up: the next moment counts from when this one was due.
    assert 0.19 * 12 < moments[12] - moments[0] < 0.21 * 12 + 0.1


def test_a_fault_in_a_group_is_said_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    async def no_descriptor() -> Finding:
        nonlocal asked
        asked += 1
        raise OSError(errno.EMFILE, "Too many open files")

    async def fine() -> Finding:
        return Finding()

    async def body(watched: Watch) -> None:
        await until(lambda: asked > 9 and len(watched.results) > 9)

    watch([told(1, no_descriptor), told(2, no_descriptor), told(3, fine)], body)
    assert caplog.text.count("event=checks-hindered") == 1


A, B = TcpCheck(port=1, rise=1, fall=1), TcpCheck(port=2, rise=1, fall=1)


def result(check: Check, passed: bool, started_s: float = float("inf"), **more: Any) -> Result:
    finding = Finding(None if passed else "refused", **more)
    return Result(
        Target(1, Endpoint(ip_address("10.0.0.1"), check.port_of(None, None)), check), finding, started_s
    )


@pytest.mark.parametrize(
    ("needed", "ups"), [("all", [True, True, False, False, True]), ("any", [True, True, True, False, True])]
)
def test_several_checks_of_one_backend(needed: str, ups: list[bool]) -> None:
    state = BackendState()
    state.follow(checked(A, B, needed=needed))
    told = []
    for check, passed in ((A, True), (B, True), (A, False), (B, False)):
        state.heard(result(check, passed))
        told.append(state.up)
    state.heard(result(A, True))
    state.heard(result(B, True))
    assert [*told, state.up] == ups


def test_a_late_result_flips_nothing() -> None:
    state = BackendState()
    state.follow(checked(A, B))
    begun_s = time.monotonic()
    assert state.heard(result(A, False)) is Change.DOWN
    assert state.cause == "connect to 10.0.0.1:1: refused"
    assert state.heard(result(A, True, begun_s)) is None
    assert not state.up
    assert state.heard(result(A, True)) is Change.UP
    assert state.heard(result(TcpCheck(port=3), False)) is None  # nobody asks this any more


def test_the_strictest_word_counts() -> None:
    agent, command = AgentCheck(port=1), TcpCheck(port=2)
    state = BackendState()
    state.follow(checked(agent, command))
    assert state.heard(result(agent, True, percent=30)) is Change.SHARE
    assert state.effective_weight(5) == 2  # never 0 by rounding
    assert state.heard(result(agent, True)) is None  # what is not said again holds
    assert state.heard(result(command, True, weight=100)) is Change.SHARE
    assert state.effective_weight(5) == 30
    state.weight = 10
    assert state.effective_weight(5) == 3
    assert state.heard(result(agent, True, wanted="drain")) is Change.SHARE
    assert (state.usable, state.effective_weight(5)) == (True, 0)
    assert state.heard(result(agent, True, wanted="maintenance")) is Change.SHARE
    assert not state.usable
    state.wanted = Wanted.READY
    assert not state.usable
    assert state.heard(result(agent, True, wanted="ready", percent=100)) is Change.SHARE
    assert state.effective_weight(5) == 10


def backends_of(
    checks: str, *addresses: str, memory: SharedMemory, adopted: Adopted | None = None
) -> Backends:
    return Backends(memory, config_of(checks, *addresses), adopted)


def config_of(checks: str, *addresses: str) -> Config:
    backends = "".join(f'[[service.backend]]\naddress = "{each}"\n' for each in addresses)
    text = f'[[service]]\nname = "web"\nvips = ["192.0.2.1"]\n{checks}\n{backends}'
    return parse_toml(text, "f").config()


CHECKED = "[service.check]\nport = 80\n"


@pytest.mark.parametrize(
    ("initial", "ups"),
    [("", (True, False)), ('initial = "up"\n', (True, True)), ('initial = "down"\n', (False, False))],
)
def test_who_counts_as_up_before_it_was_checked(initial: str, ups: tuple[bool, bool]) -> None:
    backends = backends_of(initial + CHECKED, "10.0.0.1", memory=new_shared_memory(1_024, 1))
    assert backends.states[0].up is ups[0]
    backends.configure(
        backends.expand(config_of(initial + CHECKED, "10.0.0.1", "10.0.0.2"), backends.services)
    )
    assert (backends.states[0].up, backends.states[1].up) == ups
    (target,) = [each for each in backends.targets() if each.backend == 1]
    backends.heard(Result(target, Finding(), float("inf")))
    assert backends.states[1].up  # its first success is enough


def test_a_service_without_checks_or_a_new_one_serves_at_once() -> None:
    backends = backends_of("", "10.0.0.1", memory=new_shared_memory(1_024, 1))
    backends.configure(backends.expand(config_of("", "10.0.0.1", "10.0.0.2"), backends.services))
    assert all(state.up for state in backends.states.values())


def test_a_reload_keeps_what_checks_said() -> None:
    backends = backends_of(CHECKED, "10.0.0.1", memory=new_shared_memory(1_024, 1))
    (target,) = backends.targets()
    assert backends.heard(Result(target, Finding("refused"), float("inf"))) is Change.DOWN
    backends.configure(
        backends.expand(config_of(CHECKED + "interval_s = 1\n", "10.0.0.1"), backends.services)
    )
    assert not backends.states[0].up
    assert backends.heard(Result(target, Finding(), float("inf"))) is None  # of the check that was
    (target,) = backends.targets()
    assert backends.heard(Result(target, Finding(), float("inf"))) is None
    assert backends.heard(Result(target, Finding(), float("inf"))) is Change.UP


def test_health_of_several_checks_outlives_a_hand_over() -> None:
    memory = new_shared_memory(1_024, 1)
    several = (
        'checks_needed = "any"\n[[service.check]]\nport = 80\nfall = 1\n'
        '[[service.check]]\ntype = "agent"\nport = 81\n'
    )
    before = backends_of(several, "10.0.0.1", "10.0.0.2", memory=memory)
    for target in before.targets():
        passed = isinstance(target.check, AgentCheck) or target.backend == 1
        before.heard(Result(target, Finding(None if passed else "refused", percent=50), float("inf")))
    before.note()
    noted = read_state(memory)
    assert noted
    adopted = Adopted(memory, 0, *noted, {}, [], [])
    after = backends_of(several, "10.0.0.1", "10.0.0.2", "10.0.0.3", memory=memory, adopted=adopted)
    for number in (0, 1):
        old, new = before.states[number], after.states[number]
        assert new.effective_weight(10) == old.effective_weight(10) == 5
        assert [each.health for each in new.checks.values()] == [each.health for each in old.checks.values()]
    assert not after.states[2].up  # it joined meanwhile
    target = next(
        each for each in after.targets() if each.backend == 0 and isinstance(each.check, AgentCheck)
    )
    assert after.heard(Result(target, Finding("down"), float("inf"))) is Change.DOWN


@pytest.mark.parametrize("needed", ["all", "any"])
def test_an_agent_that_never_spoke_holds_nobody_down_and_nobody_up(needed: str) -> None:
    agent = AgentCheck(port=9)
    state = BackendState(up=False)
    state.follow(checked(A, agent, needed=needed))
    assert not state.up
    assert state.heard(result(A, True)) is Change.UP
    assert state.heard(result(A, False)) is Change.DOWN
    state.heard(result(A, True))
    state.heard(result(agent, False))
    assert state.up is (needed == "any")


def test_who_is_asked() -> None:
    checks = '[[service.check]]\nport = 80\n[[service.check]]\nport = 81\naddress = "10.9.9.9"\n'
    config = config_of(checks, "10.0.0.1", "10.0.0.2")
    aside = config.services[0].backends[1].model_copy(update={"check_address": ip_address("10.1.0.2")})
    service = config.services[0].model_copy(update={"backends": (config.services[0].backends[0], aside)})
    backends = Backends(new_shared_memory(1_024, 1), config.model_copy(update={"services": (service,)}))
    assert [each.question for each in backends.targets()] == [
        "connect to 10.0.0.1:80",
        "connect to 10.9.9.9:81",
        "connect to 10.1.0.2:80",
        "connect to 10.9.9.9:81",
    ]


def test_attempts_are_begun_few_at_once_and_room_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_IN_FLIGHT", 40)
    begun: list[int] = []
    rounds = 0

    async def answer() -> Finding:
        begun.append(rounds)
        await asyncio.sleep(0.02)
        return Finding()

    def count() -> None:
        nonlocal rounds
        rounds += 1
        asyncio.get_running_loop().call_soon(count)

    targets = [told(number, answer, interval_s=0.001) for number in range(100)]

    async def body(watched: Watch) -> None:
        asyncio.get_running_loop().call_soon(count)
        await until(lambda: len(begun) > 200)
        watched.update([])  # many wait, some were just begun
        await until(lambda: watched.runner._room == 40)
        watched.update(targets)
        heard = len(begun)
        await until(lambda: len(begun) > heard + 200)

    watch(targets, body)
    assert max(begun.count(each) for each in set(begun)) <= 32


def test_what_we_were_too_busy_to_hear_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    async def hang() -> Finding:
        asked.set()
        await asyncio.sleep(DEADLINE_S)
        raise AssertionError

    async def body(watched: Watch) -> None:
        await asyncio.wait_for(asked.wait(), DEADLINE_S)
        time.sleep(0.4)  # as a supervisor that hangs in a system call
        await until(lambda: "checks-hindered" in caplog.text)
        assert watched.results == []
        await until(lambda: bool(watched.results))
        assert watched.results[0].finding.fault == "no answer within 0.1 s"

    watch([told(1, hang, timeout_s=0.1)], body)
    assert 'cause="this machine was too busy to listen in time"' in caplog.text
