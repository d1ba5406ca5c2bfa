"""Server and client over the real socket, in this process."""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from test_metrics import STATUS

from loaded_mp.control import address, client, server
from loaded_mp.control.client import ControlError, ask
from loaded_mp.control.commands import COMMANDS, Commands
from loaded_mp.metrics.server import serve_metrics
from loaded_mp.status import Status

Result = TypeVar("Result")


class Daemon:
    """A daemon that does nothing but answer."""

    def __init__(self, *mistakes: str) -> None:
        self._mistakes = [*mistakes]

    def status(self) -> Status:
        return STATUS

    async def reload(self) -> list[str]:
        return self._mistakes


class MoreCommands(Commands):
    """As a command that takes arguments will look like."""

    async def weight(self, backend: str, value: int = 1) -> list[tuple[str, int]]:
        return [(backend, value)]


@pytest.fixture(autouse=True)
def _own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may run on this machine."""
    mine = f"{address.CONTROL_ADDRESS}-test-{os.getpid()}"
    monkeypatch.setattr(client, "CONTROL_ADDRESS", mine)
    monkeypatch.setattr(server, "CONTROL_ADDRESS", mine)


def served(asking: Callable[[], Result], commands: Commands | None = None) -> Result:
    """What `asking` gives while a server runs."""

    async def run() -> Result:
        async with server.serve_control(server.control_socket(), commands or Commands(Daemon())):
            return await asyncio.to_thread(asking)

    return asyncio.run(run())


def test_status_arrives_as_it_was() -> None:
    assert served(lambda: ask("status", Status)) == STATUS


def test_reload_says_what_is_wrong() -> None:
    mistake = "a.toml:1: workers: found -1, expected 1 or more"
    assert served(lambda: ask("reload", list[str]), Commands(Daemon(mistake))) == [mistake]
    assert served(lambda: ask("reload", list[str])) == []


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


def test_only_one_may_bind() -> None:
    with server.control_socket(), pytest.raises(server.AlreadyRunningError, match="another loaded-mp"):
        server.control_socket()


def test_only_root_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ALLOWED_USER", 12345)
    monkeypatch.setattr(client, "ALLOWED_USER", 12345)
    for asking in (lambda: ask("status", Status), lambda: ask("nonsense", Status)):
        with pytest.raises(ControlError, match="only root"):
            served(asking)


def test_metrics_are_served_over_tcp() -> None:
    async def run() -> str:
        async with serve_metrics("127.0.0.1:0", lambda: STATUS) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            return text

    said = asyncio.run(run())
    assert said.startswith("HTTP/1.0 200")
    assert "loaded_mp_backend_up" in said
