"""Running a program of the operator's as a child, beside the loop."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from loaded_mp.checks.check import LocalError, shown

_SHOWN_BYTES = 200
#: So long the end of a program that was killed is waited for.
_KILLED_S = 0.2
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def _is_program(words: tuple[str, ...]) -> tuple[str, ...]:
    if words and not (words[0].startswith("/") and os.access(words[0], os.X_OK)):
        raise ValueError("expected a program that can be executed, with its whole path, and its words")
    return words


def _is_user(name: str) -> str:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise ValueError("expected a user of this machine") from None
    return name


#: A program with its whole path, and its words.
Words = Annotated[tuple[str, ...], Field(max_length=64), AfterValidator(_is_program)]
#: A user of this machine.
User = Annotated[str, AfterValidator(_is_user)]


class Ended(NamedTuple):
    """How a program has ended."""

    status: int
    output: bytes  #: the begin of what it said


async def run_program(words: Sequence[str], user: str) -> tuple[int, str]:
    """How a program ends: its status, and that with the first line that it says, for people.

    As `run`.
    """
    status, output = await run(words, user)
    line = output.decode(errors="replace").strip().partition("\n")[0]
    return status, f"status {status}{f', {shown(line)}' if line else ''}"


async def run(
    words: Sequence[str], user: str | None, stdin: int = subprocess.DEVNULL, most_bytes: int | None = None
) -> Ended:
    """How a program ends as a user; None: as us. It ends with its children when we are cut off.

    `most_bytes`: it is killed when it has said so many; None: its words are read and dropped.

    Raises LocalError if it cannot be run.
    """
    loop = asyncio.get_running_loop()
    whom: dict[str, Any] = {}
    try:
        if user is not None:
            whom = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": ()}
        program = subprocess.Popen(
            words,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            **whom,
        )
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise LocalError(f"{words[0]}: {error}") from None
    assert program.stdout
    output = program.stdout
    os.set_blocking(output.fileno(), False)
    pidfd = os.pidfd_open(program.pid)
    begin = bytearray()
    kept = _SHOWN_BYTES if most_bytes is None else most_bytes
    ended: asyncio.Future[None] = loop.create_future()

    def hear() -> None:
        # Read to its end, so that a program that talks much does not wait for us.
        data = output.read(65_536)
        if data is not None:
            begin.extend(data[: kept - len(begin)])
        if most_bytes is not None and len(begin) >= most_bytes:
            _kill(program.pid)
        if data == b"":
            loop.remove_reader(output)

    def end() -> None:
        while len(begin) < kept and (data := output.read(65_536)):
            begin.extend(data[: kept - len(begin)])
        loop.remove_reader(output)
        output.close()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        _kill(program.pid)
        program.wait()
        ended.set_result(None)

    loop.add_reader(output, hear)
    loop.add_reader(pidfd, end)
    try:
        await asyncio.wait([ended])
    except asyncio.CancelledError:
        _kill(program.pid)
        await asyncio.wait([ended], timeout=_KILLED_S)  # else `end` takes note of it, whenever that is
        raise
    return Ended(program.returncode, bytes(begin))


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
