"""Connections that are too many, too slow or malformed, on a real socket in this process."""

import asyncio
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loaded_mp import accepting
from loaded_mp.accepting import serve_http

pytestmark = pytest.mark.uncompiled

DEADLINE_S = 10.0
MOST = 4
REQUEST = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
WITHOUT_ITS_BODY = b"GET /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
LARGE_BYTES = 50_000_000  #: more than a socket holds

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Server = Callable[[], AbstractAsyncContextManager[Callable[[], Coroutine[Any, Any, Streams]]]]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server, and a way of connecting to it."""
    path = str(tmp_path / "socket")

    async def quick(request: web.Request) -> web.Response:
        return web.Response(text="good")

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(3 * accepting.REQUEST_S)
        return web.Response(text="good")

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE_BYTES))

    @asynccontextmanager
    async def serving() -> AsyncIterator[Callable[[], Coroutine[Any, Any, Streams]]]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        routes = [web.get("/quick", quick), web.get("/slow", slow), web.get("/large", large)]
        async with asyncio.timeout(DEADLINE_S), serve_http("test", routes, [listener], MOST):
            yield lambda: asyncio.open_unix_connection(path)

    return serving


async def closed(streams: Streams) -> bytes:
    """What was received until the other end closed."""
    reader, writer = streams
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def asked(streams: Streams, what: bytes = b"quick") -> bytes:
    streams[1].write(REQUEST % what)
    return await closed(streams)


def test_a_connection_is_for_one_request(server: Server) -> None:
    async def run() -> bytes:
        async with server() as connect:
            reader, writer = await connect()
            writer.write(REQUEST % b"quick" * 3)
            return await closed((reader, writer))

    said = asyncio.run(run())
    assert said.count(b"200 OK") == 1
    assert b"Connection: close" in said
    assert said.endswith(b"good")


def test_connections_are_bounded(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with server() as connect:
            first = [await connect() for _ in range(MOST)]
            assert [await closed(await connect()) for _ in range(10 * MOST)] == [b""] * (10 * MOST)
            for streams in first:
                assert (await asked(streams)).endswith(b"good")
            assert (await asked(await connect())).endswith(b"good")

    asyncio.run(run())
    assert caplog.messages == ['event=connections-refused server=test cause="4 are open"']


def test_what_goes_on_is_said_again_with_its_number(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "_QUIET_S", 0.2)

    async def run() -> None:
        async with server() as connect:
            first = [await connect() for _ in range(MOST)]
            for _ in range(3):
                await closed(await connect())
            while len(caplog.messages) < 2:
                await asyncio.sleep(0.01)
            for _, writer in first:
                writer.close()

    asyncio.run(run())
    assert caplog.messages[1] == "event=connections-refused server=test times=2 in_s=0"


@pytest.mark.parametrize("start", [b"", b"GET /quick HT", REQUEST[:-2], WITHOUT_ITS_BODY])
def test_a_request_that_does_not_come_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(accepting, "REQUEST_S", 0.2)

    async def run() -> None:
        async with server() as connect:
            reader, writer = await connect()
            writer.write(start)
            assert await closed((reader, writer)) == b""

    asyncio.run(run())


def test_a_request_in_small_pieces_gets_no_more_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "REQUEST_S", 0.2)

    async def run() -> None:
        async with server() as connect:
            reader, writer = await connect()
            while not reader.at_eof() and not reader.exception():
                writer.write(b"G")
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(run())


def test_an_answer_that_takes_long_is_given(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "REQUEST_S", 0.2)

    async def run() -> bytes:
        async with server() as connect:
            return await asked(await connect(), b"slow")

    assert asyncio.run(run()).endswith(b"good")


def test_an_answer_that_is_not_taken_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "REQUEST_S", 0.2)

    async def run() -> bytes:
        async with server() as connect:
            lazy = [await connect() for _ in range(MOST)]
            for _, writer in lazy:
                writer.write(REQUEST % b"large")
            while not (said := await asked(await connect())):
                await asyncio.sleep(0.01)
            for _, writer in lazy:
                writer.close()
            return said

    assert asyncio.run(run()).endswith(b"good")


def test_no_descriptors_are_said_once_and_waited_out(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "_FAILED_PAUSE_S", 0.01)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> bytes:
        async with server() as connect:
            client = await connect()
            await asked(client)
            waiting = socket.socket(socket.AF_UNIX)
            waiting.setblocking(False)
            # The lowest free descriptor is what the limit is about.
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                waiting.connect(client[1].get_extra_info("peername"))
                while not caplog.messages:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)  # many looks
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return await asked(await asyncio.open_unix_connection(sock=waiting))

    assert asyncio.run(run()).endswith(b"good")
    assert caplog.messages == ['event=connections-wait server=test cause="Too many open files"']


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nx\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 99_999,
    ],
)
def test_what_is_not_http_is_not_logged(
    server: Server, caplog: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    async def run() -> bytes:
        async with server() as connect:
            reader, writer = await connect()
            writer.write(nonsense)
            return await closed((reader, writer))

    with caplog.at_level(logging.INFO):
        assert b" 400 " in asyncio.run(run())[:20]
    assert caplog.messages == []


def test_half_a_request_does_not_hold_up_the_end(server: Server) -> None:
    async def run() -> float:
        async with server() as connect:
            _, writer = await connect()
            writer.write(WITHOUT_ITS_BODY)
            await asked(await connect())
            begin_s = time.monotonic()
        writer.close()
        return time.monotonic() - begin_s

    assert asyncio.run(run()) < 3
