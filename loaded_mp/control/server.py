"""The daemon's side of the control socket: POST /COMMAND, arguments and answer as JSON. No threads."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from loaded_mp.control.address import CONTROL_ADDRESS
from loaded_mp.control.commands import COMMANDS, Commands

_MAX_REQUEST_BYTES = 64 * 1024
_BACKLOG = 16
_ALLOWED_USER = 0


class AlreadyRunningError(Exception):
    """Another daemon runs in this network namespace."""


def control_socket(handed: int | None = None) -> socket.socket:
    """Bind the control socket: the lock that makes us the one daemon. Raises AlreadyRunningError.

    `handed` is the descriptor of one that is bound already.
    """
    if handed is not None:
        return socket.socket(fileno=handed)
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


@asynccontextmanager
async def serve_control(control: socket.socket, commands: Commands) -> AsyncIterator[None]:
    """Answer commands as long as the context lasts."""

    async def post(request: web.Request) -> web.Response:
        _only_root(request)
        answer = await _answer(commands, request.match_info["command"], await request.text())
        return web.json_response(body=answer)

    application = web.Application(client_max_size=_MAX_REQUEST_BYTES)
    application.router.add_post("/{command}", post)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.SockSite(runner, control, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


def _only_root(request: web.Request) -> None:
    """Refuse others than root (SO_PEERCRED, unix(7))."""
    assert request.transport
    connection: socket.socket = request.transport.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != _ALLOWED_USER:
        raise web.HTTPForbidden


async def _answer(commands: Commands, name: str, arguments: str) -> bytes:
    """What the command says, as JSON. `arguments` is a JSON object; nothing at all stands for {}."""
    if name not in COMMANDS:
        raise web.HTTPNotFound(text=f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
    try:
        # A method is read as its call. What comes back is still to be awaited, so that only the arguments
        # are judged here.
        answer = TypeAdapter(getattr(commands, name)).validate_json(arguments or "{}")
    except ValidationError as error:
        faults = "; ".join(
            ": ".join([*map(str, each["loc"]), each["msg"].lower()]) for each in error.errors()
        )
        raise web.HTTPBadRequest(text=f"wrong arguments for {name}: {faults}") from None
    return to_json(await answer)
