"""The daemon's side of the control socket: POST /COMMAND, arguments and answer as JSON. No threads."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from loaded_mp.accepting import serve_http
from loaded_mp.control.address import ALLOWED_USER, CONTROL_ADDRESS
from loaded_mp.control.commands import COMMANDS, Commands

_MOST_CONNECTIONS = 32


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


@asynccontextmanager
async def serve_control(control: socket.socket, commands: Commands) -> AsyncIterator[None]:
    """Answer commands as long as the context lasts."""

    async def post(request: web.Request) -> web.Response:
        answer = await _answer(commands, request.match_info["command"], await request.text())
        return web.json_response(body=answer)

    routes = [web.post("/{command}", post)]
    async with serve_http("control", routes, [control], _MOST_CONNECTIONS, _only_root):
        yield


def _only_root(connection: socket.socket) -> str:
    """Why others than root are refused (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return "" if user == ALLOWED_USER else f"user {user} is not root"


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
