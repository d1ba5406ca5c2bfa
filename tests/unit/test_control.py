"""Server and client over the real socket, in this process."""

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import IO, TypeVar

import pytest
from test_metrics import STATUS

from loaded_mp.config.model import Backend, Config
from loaded_mp.config.saving import Unsaved
from loaded_mp.config.toml import parse_toml
from loaded_mp.control import client, server
from loaded_mp.control.client import ControlError, ask, ask_for_long
from loaded_mp.control.commands import COMMANDS, Commands
from loaded_mp.metrics.server import metrics_sockets, serve_metrics
from loaded_mp.network.errors import NetworkError
from loaded_mp.status import Outcome, Status

Result = TypeVar("Result")


UNSAVED = Unsaved(
    file=Path("/etc/f.toml"),
    added=(("web", Backend.model_validate({"address": "10.0.0.9"})),),
    removed=(("web", ip_address("fd00::1")),),
    weights=(("web", ip_address("10.0.0.1"), 7),),
)


class Daemon:
    """A daemon that does nothing but answer."""

    def __init__(self, *mistakes: str) -> None:
        self._mistakes = [*mistakes]

    def status(self) -> Status:
        return STATUS

    async def reload(self, dry_run: bool) -> Outcome:
        return Outcome(mistakes=tuple(self._mistakes), changes=("dry",) if dry_run else ())

    async def compare(self, config: Config) -> Outcome:
        return Outcome(changes=(f"{config.services[0].backends[0].address}",))

    async def add(self, service: str, backend: Backend) -> Outcome:
        return Outcome(changes=(f"{service} {backend.address} {backend.weight}",))

    async def remove(self, backend: str, service: str | None) -> Outcome:
        return Outcome(changes=(f"{backend} {service}",))

    def unsaved(self) -> Unsaved:
        return UNSAVED

    async def restart(self) -> list[str]:
        return self._mistakes

    def stop(self) -> None:
        self._mistakes.clear()


class MoreCommands(Commands):
    """As a command that takes arguments will look like."""

    async def weight(self, backend: str, value: int = 1) -> list[tuple[str, int]]:
        return [(backend, value)]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A daemon may run on this machine."""
    path = tmp_path / "run" / "control.socket"
    monkeypatch.setattr(client, "control_path", lambda namespace="": path)
    monkeypatch.setattr(server, "control_path", lambda: path)
    return path


def served(asking: Callable[[], Result], commands: Commands | None = None) -> Result:
    """What `asking` gives while a server runs."""

    async def run() -> Result:
        with server.control_socket() as control:
            async with server.serve_control(control, commands or Commands(Daemon())):
                return await asyncio.to_thread(asking)

    return asyncio.run(run())


def test_status_arrives_as_it_was() -> None:
    assert served(lambda: ask("status", Status)) == STATUS


def test_reload_says_what_is_wrong() -> None:
    mistake = "a.toml:1: workers: found -1, expected 1 or more"
    said = served(lambda: ask("reload", Outcome), Commands(Daemon(mistake)))
    assert said == Outcome(mistakes=(mistake,))
    assert served(lambda: ask("reload", Outcome, dry_run=True)) == Outcome(changes=("dry",))


def test_backends_come_and_go_by_name() -> None:
    backend = Backend.model_validate({"address": "10.0.0.9", "weight": 3})
    said = served(lambda: ask("add", Outcome, service="web", backend=backend))
    assert said.changes == ("web 10.0.0.9 3",)
    assert served(lambda: ask("remove", Outcome, backend="web1")).changes == ("web1 None",)
    assert served(lambda: ask("remove", Outcome, backend="web1", service="web")).changes == ("web1 web",)


def test_what_is_not_saved_arrives_as_it_was() -> None:
    assert served(lambda: ask("unsaved", Unsaved)) == UNSAVED


def test_a_configuration_arrives_as_it_was() -> None:
    text = Path("deploy/loaded-mp.toml").read_text().replace("#address", "address")
    sent = parse_toml(text, "f").config()
    arrived: list[Config] = []

    class Compared(Daemon):
        async def compare(self, config: Config) -> Outcome:
            arrived.append(config)
            return Outcome()

    asked = sent.model_dump(mode="json", exclude_defaults=True)
    served(lambda: ask("compare", Outcome, config=asked), Commands(Compared()))
    assert arrived == [sent]


def test_what_takes_its_time_is_said_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Daemon):
        async def reload(self, dry_run: bool) -> Outcome:
            await asyncio.sleep(0.2)
            return Outcome(changes=("late",))

    monkeypatch.setattr(client, "TIMEOUT_S", 0.05)
    said: list[None] = []

    def asking() -> Outcome:
        return ask_for_long("reload", Outcome, lambda: said.append(None))

    assert served(asking, Commands(Slow())) == Outcome(changes=("late",))
    assert said == [None]
    monkeypatch.setattr(client, "LONG_TIMEOUT_S", 0.1)
    with pytest.raises(ControlError, match=r"no answer within 0\.1 s"):
        served(asking, Commands(Slow()))


def test_arguments_have_names_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "COMMANDS", (*COMMANDS, "weight"))

    def asking(**arguments: object) -> Callable[[], list[tuple[str, int]]]:
        return lambda: ask("weight", list[tuple[str, int]], **arguments)

    commands = MoreCommands(Daemon())
    assert served(asking(backend="web1", value=7), commands) == [("web1", 7)]
    assert served(asking(backend="web1"), commands) == [("web1", 1)]
    for arguments, fault in (
        ({}, "backend: missing required argument"),
        ({"backend": "web1", "value": "x"}, "value: input should be a valid integer"),
        ({"backend": "web1", "port": 80}, "port: unexpected keyword argument"),
    ):
        with pytest.raises(ControlError, match=f"the daemon refuses: wrong arguments for weight: {fault}"):
            served(asking(**arguments), commands)


@pytest.mark.parametrize("name", ["nonsense", "_daemon", "__init__", "__class__"])
def test_what_is_no_command_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ControlError, match=f"there is no command '{name}'; there are: status, reload"):
        served(lambda: ask(name, list[str]))


@pytest.mark.parametrize("body", [b"{", b"3", b'"x"'])
def test_a_body_that_names_no_arguments_is_refused(body: bytes) -> None:
    with pytest.raises(ControlError, match="wrong arguments for status: "):
        served(lambda: client._post("/status", body))


def test_a_request_may_be_empty() -> None:
    assert Status.model_validate_json(served(lambda: client._post("/status", b""))) == STATUS


def test_an_answer_of_another_version_is_said_in_words() -> None:
    with pytest.raises(ControlError, match="another version; restart it"):
        served(lambda: ask("status", list[str]))


def test_nobody_there_is_said_in_words() -> None:
    with pytest.raises(ControlError, match="no loaded-mp runs in this network namespace"):
        ask("status", Status)


def hold() -> None:
    with server.control_socket():
        pass


def test_only_one_may_bind(path: Path) -> None:
    with server.control_socket():
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(server.AlreadyRunningError, match="another loaded-mp"):
            hold()
        assert path.exists()
    assert not [*path.parent.iterdir()]
    hold()


def test_a_command_waits_for_a_daemon_that_is_restarting(path: Path) -> None:
    path.parent.mkdir()
    nobody = socket.socket(socket.AF_UNIX)
    nobody.bind(str(path))
    nobody.close()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, "status", Status)
        with pytest.raises(TimeoutError):
            asked.result(0.2)
        assert served(lambda: asked.result(10)) == STATUS


def test_what_a_killed_daemon_left_is_in_nobody_s_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if not child:
        with server.control_socket():
            os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()
    monkeypatch.setattr(client, "RESTART_S", 0.0)
    with pytest.raises(ControlError, match="it was killed and its workers go on alone"):
        ask("status", Status)
    hold()
    assert served(lambda: ask("status", Status)) == STATUS


def test_a_lock_that_was_just_given_up_is_not_taken_for_ours(path: Path) -> None:
    """The file that we opened may be deleted when the lock is ours."""
    path.parent.mkdir()
    lock = path.with_suffix(".lock")
    real = fcntl.flock

    def flock(file: IO[str], operation: int) -> None:
        lock.unlink(missing_ok=True)
        monkeypatch.undo()
        real(file, operation)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fcntl, "flock", flock)
        with server.control_socket():
            assert lock.exists()


def test_a_place_that_cannot_be_written_is_said_in_words(path: Path) -> None:
    path.parent.write_text("")
    with pytest.raises(NetworkError, match="has to run as root"):
        hold()


def test_only_root_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ALLOWED_USER", 12345)
    monkeypatch.setattr(client, "ALLOWED_USER", 12345)
    for asking in (lambda: ask("status", Status), lambda: ask("nonsense", Status)):
        with pytest.raises(ControlError, match="only root"):
            served(asking)


def test_whoever_holds_the_lock_runs() -> None:
    assert not client.is_running()
    with server.control_socket():
        assert client.is_running()
    assert not client.is_running()


def test_stop_is_answered() -> None:
    daemon = Daemon("a mistake")
    served(lambda: ask("stop", NoneType), Commands(daemon))
    assert asyncio.run(daemon.restart()) == []


def test_metrics_are_served_over_tcp() -> None:
    async def run() -> str:
        listeners = metrics_sockets("127.0.0.1:0")
        async with serve_metrics(listeners, lambda: STATUS):
            reader, writer = await asyncio.open_connection(*listeners[0].getsockname())
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            return text

    said = asyncio.run(run())
    assert said.startswith("HTTP/1.0 200")
    assert "loaded_mp_backend_up" in said
