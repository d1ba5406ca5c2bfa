"""/metrics over TCP, in the supervisor's one thread."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from loaded_mp.accepting import serve_http
from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.status import Status

_MOST_CONNECTIONS = 64


def metrics_sockets(listen: str) -> list[socket.socket]:
    """A listening socket for each address of HOST:PORT. Raises OSError if one is taken."""
    host, _, port = listen.rpartition(":")
    # Not asked by the event loop: that keeps a thread for it, and the supervisor has one thread.
    addresses = socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with ExitStack() as unless_all_are_bound:
        listeners = [
            unless_all_are_bound.enter_context(socket.create_server(address, family=family))
            for family, _, _, _, address in addresses
        ]
        unless_all_are_bound.pop_all()
    return listeners


@asynccontextmanager
async def serve_metrics(
    listeners: Sequence[socket.socket], status: Callable[[], Status]
) -> AsyncIterator[None]:
    """Serve /metrics as long as the context lasts; then the sockets are closed."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async with serve_http("metrics", [web.get("/metrics", get_metrics)], listeners, _MOST_CONNECTIONS):
        yield
