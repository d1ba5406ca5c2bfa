"""An HTTP server of which nobody can take all descriptors, all time or the log.

asyncio's own accepting has no bound, and logs a traceback a second while there are no descriptors.
"""

import asyncio
import logging
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from loaded_mp.log import event

log = logging.getLogger(__name__)
#: What goes wrong while a request is answered. What is wrong with the request is told to its client alone.
_log_of_answers = logging.getLogger(f"{__name__}.answers")
_log_of_answers.addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
)

#: A connection whose request is not complete by then is closed; its answer has as long to be taken.
REQUEST_S = 10.0
_BACKLOG = 128
#: Until the next look where accepting failed: a descriptor may be free then.
_FAILED_PAUSE_S = 1.0
#: After a refusal, so that whoever knocks without end gets little of the supervisor's time.
_REFUSED_PAUSE_S = 0.001
#: What is refused again and again is said once in that time.
_QUIET_S = 60.0
_STOP_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve_http(
    name: str,
    routes: Sequence[web.RouteDef],
    listeners: Sequence[socket.socket],
    most_connections: int,
    refusal: Callable[[socket.socket], str] = lambda connection: "",
    max_request_bytes: int = 64 * 1024,
) -> AsyncIterator[None]:
    """Serve on bound sockets as long as the context lasts; then they are closed. The log calls it `name`.

    A connection is for one request. It is closed unread while `most_connections` are open, or if `refusal`
    says why.
    """
    connections = _Connections(name, most_connections, refusal)
    application = web.Application(middlewares=[connections.one_request], client_max_size=max_request_bytes)
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_STOP_S, logger=_log_of_answers)
    await runner.setup()
    assert runner.server
    for listener in listeners:
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    accepting = [asyncio.create_task(connections.accept(each, runner.server)) for each in listeners]
    try:
        yield
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for listener in listeners:
            listener.close()
        await runner.cleanup()


class _Connections:
    """Lets connections in and ends those that take too long."""

    def __init__(self, name: str, most: int, refusal: Callable[[socket.socket], str]) -> None:
        self._name = name
        self._most = most
        self._refusal = refusal
        self._answering: set[asyncio.BaseTransport | None] = set()  #: their requests are complete
        self._repeated: dict[str, int] = {}  #: what was said lately -> how often it happened since

    async def accept(self, listener: socket.socket, server: web.Server) -> None:
        """Take what arrives at a listener, until cancelled."""
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # such as EMFILE
                self._say("connections-wait", error.strerror or str(error))
                await asyncio.sleep(_FAILED_PAUSE_S)
                continue
            full = f"{self._most} are open" if len(server.connections) >= self._most else ""
            if cause := self._refusal(connection) or full:
                connection.close()
                self._say("connections-refused", cause)
                await asyncio.sleep(_REFUSED_PAUSE_S)
            else:
                await self._let_in(connection, server)

    async def _let_in(self, connection: socket.socket, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(server, connection)
        except OSError:  # gone already
            connection.close()
        else:
            loop.call_later(REQUEST_S, self._end, weakref.ref(transport))

    def _end(self, reference: "weakref.ref[asyncio.Transport]") -> None:
        """End a connection whose request is not complete, or whose answer is not taken."""
        transport = reference()
        if transport is None:
            return
        if transport in self._answering:
            asyncio.get_running_loop().call_later(REQUEST_S, self._end, reference)
        else:
            transport.abort()

    @web.middleware
    async def one_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer when the whole request is there, however long that takes; then close the connection."""
        transport = request.transport
        try:
            await request.read()
            self._answering.add(transport)
            answer = await handler(request)
        except web.HTTPException as error:
            error.force_close()
            raise
        finally:
            self._answering.discard(transport)
        answer.force_close()
        return answer

    def _say(self, what: str, cause: str) -> None:
        """Log it at once, then every _QUIET_S how often it happened, until it stops."""
        if what in self._repeated:
            self._repeated[what] += 1
            return
        log.warning(event(what, server=self._name, cause=cause))
        self._expect(what)

    def _expect(self, what: str) -> None:
        self._repeated[what] = 0
        asyncio.get_running_loop().call_later(_QUIET_S, self._sum_up, what)

    def _sum_up(self, what: str) -> None:
        if times := self._repeated.pop(what):
            log.warning(event(what, server=self._name, times=times, in_s=f"{_QUIET_S:.0f}"))
            self._expect(what)
