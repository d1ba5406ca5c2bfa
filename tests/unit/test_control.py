"""Server and client over the real socket, in this process."""

import asyncio
import fcntl
import grp
import os
import pwd
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import IO, TypeVar

import pytest
from test_metrics import STATUS

from loaded_mp.config.model import Backend, Config
from loaded_mp.config.saving import Unsaved
from loaded_mp.config.toml import parse_toml
from loaded_mp.control import client, server
from loaded_mp.control.client import ControlError, ask, ask_for_long
from loaded_mp.control.commands import CommandError, Commands
from loaded_mp.fields import Address, Endpoint, Listener, Network
from loaded_mp.metrics.server import metrics_sockets, serve_metrics
from loaded_mp.network.errors import NetworkError
from loaded_mp.status import (
    CheckStatus,
    Event,
    Explanation,
    FlowsStatus,
    Forecast,
    Outcome,
    ServiceStatus,
    Status,
    Wanted,
)

pytestmark = pytest.mark.uncompiled

Result = TypeVar("Result")


UNSAVED = Unsaved(
    file=Path("/etc/f.toml"),
    added=(("web", Backend.model_validate({"address": "10.0.0.9"})),),
    removed=(("web", Endpoint.read("fd00::1")),),
    weights=(("web", Endpoint.read("10.0.0.1"), 7),),
)


class Daemon:
    """A daemon that does nothing but answer."""

    def __init__(self, *mistakes: str) -> None:
        self._mistakes = [*mistakes]
        self.asked: list[tuple[object, ...]] = []

    async def status(self, service: str | None = None) -> Status:
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

    async def want(self, wanted: Wanted, backend: str, service: str | None) -> list[ServiceStatus]:
        if backend != "web1":
            raise CommandError(f"there is no backend {backend!r}; there are: web1 (web, 10.0.0.1)")
        self.asked.append((wanted, backend, service))
        return [*STATUS.services]

    async def weigh(self, weight: int | None, backend: str, service: str | None) -> list[ServiceStatus]:
        self.asked.append((weight, backend, service))
        return [*STATUS.services]

    def checks_of(self, backend: str | None, service: str | None) -> list[CheckStatus]:
        return []

    async def open_flows(
        self, source: Network | None, backend: str | None, service: str | None, most: int
    ) -> FlowsStatus:
        self.asked.append((source, backend, service, most))
        return FlowsStatus(total=3, flows=())

    async def move(self, source: Address, backend: str, service: str | None) -> FlowsStatus:
        self.asked.append((source, backend, service))
        return FlowsStatus(total=1, flows=())

    def explain(
        self, source: Address, vip: Address, protocol: Listener, port: int | None, mark: int
    ) -> Explanation:
        raise CommandError(f"{source} {vip} {protocol} {port}")

    async def what_if(
        self,
        weights: dict[str, int],
        without: list[str],
        add: list[Backend],
        scheduler: str | None,
        service: str | None,
    ) -> Forecast:
        self.asked.append((weights, without, [str(each.address) for each in add], scheduler, service))
        return Forecast(moves=1, ends=0, services=())

    async def events_after(self, number: int, wait_s: float) -> list[Event]:
        return [Event(number=number + 1, time_s=wait_s, level="info", event="reloaded")]

    async def restart(self) -> list[str]:
        return self._mistakes

    def stop(self) -> None:
        self._mistakes.clear()


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


def test_words_about_backends_arrive() -> None:
    daemon = Daemon()
    for word in ("drain", "maintenance", "ready"):
        said = served(lambda w=word: ask(w, list[ServiceStatus], backend="web1"), Commands(daemon))  # type: ignore[misc]
        assert said == [*STATUS.services]
    asked: dict[str, object] = {"backend": "web1", "service": "web"}
    for more in ({}, {"weight": 7}):
        served(lambda m=more: ask("weight", list[ServiceStatus], **asked, **m), Commands(daemon))  # type: ignore[misc]
    assert daemon.asked == [
        ("drain", "web1", None),
        ("maintenance", "web1", None),
        ("ready", "web1", None),
        (None, "web1", "web"),
        (7, "web1", "web"),
    ]


def test_a_question_about_flows_arrives() -> None:
    daemon = Daemon()
    backend = Backend.model_validate({"address": "10.0.0.9"})
    asked: dict[str, object] = {
        "weights": {"web1": 7},
        "without": ["web2"],
        "add": [backend],
        "scheduler": "mh",
    }
    assert served(lambda: ask("whatif", Forecast, **asked), Commands(daemon)).moves == 1
    served(lambda: ask("whatif", Forecast), Commands(daemon))
    assert daemon.asked == [({"web1": 7}, ["web2"], ["10.0.0.9"], "mh", None), ({}, [], [], None, None)]
    with pytest.raises(ControlError, match="scheduler: value error, expected 'rr', "):
        served(lambda: ask("whatif", Forecast, scheduler="best"))


def test_what_cannot_be_done_is_said_in_words() -> None:
    with pytest.raises(
        ControlError, match=r"the daemon refuses: there is no backend 'x'; there are: web1 \("
    ):
        served(lambda: ask("drain", list[ServiceStatus], backend="x"))


def test_arguments_have_names_and_types() -> None:
    (event,) = served(lambda: ask("events", list[Event], after=3, wait_s=0.5))
    assert (event.number, event.time_s) == (4, 0.5)
    for arguments, fault in (
        ({}, "backend: missing required argument"),
        ({"backend": "web1", "weight": "x"}, "weight: input should be a valid integer"),
        ({"backend": "web1", "weight": 65_536}, "weight: input should be less than or equal to 65535"),
        ({"backend": "web1", "port": 80}, "port: unexpected keyword argument"),
    ):
        with pytest.raises(ControlError, match=f"the daemon refuses: wrong arguments for weight: {fault}"):
            served(lambda a=arguments: ask("weight", list[ServiceStatus], **a))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["nonsense", "_daemon", "__init__", "__class__"])
def test_what_is_no_command_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ControlError, match=f"there is no command '{name}'; there are: status, drain, "):
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


def ask_as(user: str, group: str, more_groups: list[str]) -> str:
    """What a process of another user hears; it asks before it has imported anything that it may not read."""
    child = os.fork()
    if not child:
        os.setgroups([grp.getgrnam(each).gr_gid for each in more_groups])
        os.setgid(grp.getgrnam(group).gr_gid)
        os.setuid(pwd.getpwnam(user).pw_uid)
        try:
            ask("status", Status)
        except ControlError as error:
            os._exit(1 if "only root" in str(error) else 2)
        os._exit(0)
    return ("served", "refused", "broken")[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("group", "more_groups", "heard"),
    [("daemon", [], "served"), ("nogroup", ["adm", "daemon"], "served"), ("nogroup", ["adm"], "refused")],
)
def test_a_group_may_ask(group: str, more_groups: list[str], heard: str) -> None:
    async def run() -> str:
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            Path(folder).chmod(0o755)
            path = Path(folder) / "control.socket"
            monkeypatch.setattr(client, "control_path", lambda namespace="": path)
            monkeypatch.setattr(server, "control_path", lambda: path)
            with server.control_socket("daemon") as control:
                assert path.stat().st_mode & 0o777 == 0o660
                async with server.serve_control(control, Commands(Daemon()), "daemon"):
                    path.chmod(0o666)  # whoever is let in by the file is still looked at
                    return await asyncio.to_thread(ask_as, "nobody", group, more_groups)

    assert asyncio.run(run()) == heard


def test_a_group_that_is_none_is_said_in_words() -> None:
    with (
        pytest.raises(NetworkError, match="control_group: there is no group 'no-such'; make it with"),
        server.control_socket("no-such"),
    ):
        pass


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
