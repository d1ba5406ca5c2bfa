"""/metrics over TCP, in the supervisor's one thread."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.status import Status

_BACKLOG = 16


@asynccontextmanager
async def serve_metrics(listen: str, status: Callable[[], Status]) -> AsyncIterator[int]:
    """Serve /metrics on HOST:PORT as long as the context lasts; the port. Raises OSError if it is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/metrics", get_metrics)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port), backlog=_BACKLOG).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
