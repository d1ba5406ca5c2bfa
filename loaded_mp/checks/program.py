"""Running a program of the operator's as a child, beside the loop."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from loaded_mp.checks.check import LocalError, shown

_SHOWN_BYTES = 200
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


async def run_program(words: Sequence[str], user: str) -> tuple[int, str]:
    """How a program ends: its status, and that with the first line that it says, for people.

    It ends with its children when we are cut off.

    Raises LocalError if it cannot be run.
    """
    loop = asyncio.get_running_loop()
    try:
        program = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=_ENVIRONMENT,
            user=user,
            group=pwd.getpwnam(user).pw_gid,
            extra_groups=(),
            start_new_session=True,
        )
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise LocalError(f"{words[0]}: {error}") from None
    assert program.stdout
    output = program.stdout
    os.set_blocking(output.fileno(), False)
    pidfd = os.pidfd_open(program.pid)
    begin = bytearray()
    ended: asyncio.Future[None] = loop.create_future()

    def hear() -> None:
        # Read to its end, so that a program that talks much does not wait for us.
        data = output.read(65_536)
        if data is not None:
            begin.extend(data[: _SHOWN_BYTES - len(begin)])
        if data == b"":
            loop.remove_reader(output)

    def end() -> None:
        hear()
        loop.remove_reader(output)
        output.close()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        _kill(program.pid)
        program.wait()
        if not ended.cancelled():
            ended.set_result(None)

    loop.add_reader(output, hear)
    loop.add_reader(pidfd, end)
    try:
        await ended
    except asyncio.CancelledError:
        _kill(program.pid)  # and `end` takes note of it, whenever that is
        raise
    line = begin.decode(errors="replace").strip().partition("\n")[0]
    return program.returncode, f"status {program.returncode}{f', {shown(line)}' if line else ''}"


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
