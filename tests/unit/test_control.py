"""Server and client over the real socket, in this process."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from test_metrics import STATUS

from loaded_mp.control import address, client, server
from loaded_mp.control.client import ControlError

Result = TypeVar("Result")


@pytest.fixture(autouse=True)
def _own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may run on this machine."""
    mine = f"{address.CONTROL_ADDRESS}-test-{os.getpid()}"
    monkeypatch.setattr(client, "CONTROL_ADDRESS", mine)
    monkeypatch.setattr(server, "CONTROL_ADDRESS", mine)


def served(ask: Callable[[], Result], reload: Callable[[], Awaitable[list[str]]] | None = None) -> Result:
    """What `ask` gives while a server runs."""

    async def nothing() -> list[str]:
        return []

    async def run() -> Result:
        async with server.serve_control(server.control_socket(), lambda: STATUS, reload or nothing):
            return await asyncio.to_thread(ask)

    return asyncio.run(run())


def test_status_arrives_as_it_was() -> None:
    assert served(client.status) == STATUS


def test_reload_says_what_is_wrong() -> None:
    async def refuse() -> list[str]:
        return ["a.toml:1: workers: found -1, expected 1 or more"]

    assert served(client.reload, refuse) == ["a.toml:1: workers: found -1, expected 1 or more"]
    assert served(client.reload) == []


def test_nobody_there_is_said_in_words() -> None:
    with pytest.raises(ControlError, match="no loaded-mp runs in this network namespace"):
        client.status()


def test_only_one_may_bind() -> None:
    with server.control_socket(), pytest.raises(server.AlreadyRunningError, match="another loaded-mp"):
        server.control_socket()


def test_only_root_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ALLOWED_USER", 12345)
    with pytest.raises(ControlError, match="only root"):
        served(client.status)


def test_metrics_are_served_over_tcp() -> None:
    async def run() -> str:
        async with server.serve_metrics("127.0.0.1:0", lambda: STATUS) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            return text

    said = asyncio.run(run())
    assert said.startswith("HTTP/1.0 200")
    assert "loaded_mp_backend_up" in said
