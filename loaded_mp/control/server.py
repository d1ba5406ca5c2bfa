"""The daemon's side of the control socket, and /metrics over TCP: one aiohttp server each, no threads."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from loaded_mp.control.address import CONTROL_ADDRESS
from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.status import Status

_MAX_REQUEST_BYTES = 64 * 1024
_BACKLOG = 16
_ALLOWED_USER = 0


class AlreadyRunningError(Exception):
    """Another daemon runs in this network namespace."""


def control_socket() -> socket.socket:
    """Bind the control socket: the lock that makes us the one daemon. Raises AlreadyRunningError."""
    control = socket.socket(socket.AF_UNIX)
    try:
        control.bind(CONTROL_ADDRESS)
    except OSError:
        control.close()
        raise AlreadyRunningError(
            "another loaded-mp runs in this network namespace; stop it first, or look at it with"
            " 'loaded-mp status'"
        ) from None
    return control


def _only_root(request: web.Request) -> None:
    """Refuse others than root (SO_PEERCRED, unix(7))."""
    assert request.transport
    connection: socket.socket = request.transport.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != _ALLOWED_USER:
        raise web.HTTPForbidden


@asynccontextmanager
async def serve_control(
    control: socket.socket, status: Callable[[], Status], reload: Callable[[], Awaitable[list[str]]]
) -> AsyncIterator[None]:
    """Answer `loaded-mp status` and `loaded-mp reload` as long as the context lasts."""

    async def get_status(request: web.Request) -> web.Response:
        _only_root(request)
        return web.json_response(asdict(status()))

    async def post_reload(request: web.Request) -> web.Response:
        _only_root(request)
        return web.json_response(await reload())

    application = web.Application(client_max_size=_MAX_REQUEST_BYTES)
    application.router.add_get("/status", get_status)
    application.router.add_post("/reload", post_reload)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.SockSite(runner, control, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_metrics(listen: str, status: Callable[[], Status]) -> AsyncIterator[int]:
    """Serve /metrics on HOST:PORT as long as the context lasts; the port. Raises OSError if it is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application(client_max_size=_MAX_REQUEST_BYTES)
    application.router.add_get("/metrics", get_metrics)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port), backlog=_BACKLOG).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
