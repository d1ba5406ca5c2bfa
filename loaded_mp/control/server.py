"""The daemon's side of the control socket: POST /COMMAND, arguments and answer as JSON. No threads."""

import fcntl
import grp
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from loaded_mp.accepting import serve_http
from loaded_mp.control.address import ALLOWED_USER, control_path, lock_path
from loaded_mp.control.commands import COMMANDS, CommandError, Commands
from loaded_mp.network.errors import NetworkError

_MOST_CONNECTIONS = 32
#: A whole configuration may be sent.
_MAX_REQUEST_BYTES = 4 << 20
#: The same on all machines but parisc and sparc (asm-generic/socket.h).
_SO_PEERGROUPS = 59
_MOST_GROUPS = 256  #: what Python has room for


class AlreadyRunningError(Exception):
    """Another daemon runs in this network namespace."""


@contextmanager
def control_socket(group: str | None = None) -> Iterator[socket.socket]:
    """The control socket, bound; as long as the context lasts we are the one daemon of the network namespace.

    It has a path, so that others than root, and the members of `group`, can neither connect nor be there
    first. Raises AlreadyRunningError, or NetworkError if it cannot be made.
    """
    path = control_path()
    with ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _lock(stack, lock_path(path))
            control = stack.enter_context(socket.socket(socket.AF_UNIX))
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)  # a daemon that was killed left it
            control.bind(str(new))
            new.chmod(0o600)
            if group is not None:
                os.chown(new, -1, group_number(group))
                new.chmod(0o660)
            for each in (new, path):
                stack.callback(each.unlink, missing_ok=True)
            # Who asks while a daemon takes the place of another finds the one's socket or the other's.
            new.replace(path)
        except OSError as error:
            raise NetworkError(
                f"{path}: {error.strerror}; loaded-mp has to run as root and to write there"
            ) from error
        yield control


def _lock(stack: ExitStack, path: Path) -> None:
    """Hold a lock that ends with our process. Raises AlreadyRunningError."""
    while True:
        lock = stack.enter_context(path.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                "another loaded-mp runs in this network namespace; stop it first, or look at it with"
                " 'loaded-mp status'"
            ) from None
        # Whoever held it before may have deleted the file since we opened it.
        if path.exists() and path.samefile(f"/proc/self/fd/{lock.fileno()}"):
            stack.callback(path.unlink, missing_ok=True)
            return


@asynccontextmanager
async def serve_control(
    control: socket.socket, commands: Commands, group: str | None = None
) -> AsyncIterator[None]:
    """Answer commands of root and of the members of `group` as long as the context lasts."""
    members = None if group is None else group_number(group)

    async def post(request: web.Request) -> web.Response:
        answer = await _answer(commands, request.match_info["command"], await request.text())
        return web.json_response(body=answer)

    routes = [web.post("/{command}", post)]
    allowed = partial(_refusal, members)
    async with serve_http("control", routes, [control], _MOST_CONNECTIONS, allowed, _MAX_REQUEST_BYTES):
        yield


def group_number(group: str) -> int:
    """The number of a group. Raises NetworkError if there is none of that name."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise NetworkError(
            f"control_group: there is no group {group!r}; make it with 'groupadd --system {group}'"
        ) from None


def _refusal(members: int | None, connection: socket.socket) -> str:
    """Why others than root and the members of a group are refused (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, group = struct.unpack("3i", credentials)
    if user == ALLOWED_USER or members in (group, *_more_groups(connection)):
        return ""
    return f"user {user} is not root" + ("" if members is None else ", nor in control_group")


def _more_groups(connection: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the other end when it connected."""
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * 4)
    except OSError:  # more than that
        return ()
    return struct.unpack(f"{len(groups) // 4}i", groups)


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
    try:
        return to_json(await answer)
    except CommandError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
