"""The command check: how a program of the operator's ends."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from loaded_mp.checks.check import Check, Fault, Finding, LocalError, shown
from loaded_mp.fields import Address

#: Stands for the address in the words of a command.
_ADDRESS = "{address}"
_SHOWN_BYTES = 200
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def _is_program(words: tuple[str, ...]) -> tuple[str, ...]:
    if not (words[0].startswith("/") and os.access(words[0], os.X_OK)):
        raise ValueError("expected a program that can be executed, with its whole path, and its words")
    return words


def _is_user(name: str) -> str:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise ValueError("expected a user of this machine") from None
    return name


class CommandCheck(Check):
    """Run a program. Status 0 is good; all others are not, unless it is `weighted`.

    `weighted` is keepalived's MISC check with `misc_dynamic`: 1 is a fault, and from 2 on the backend serves
    with a weight of the status less 2, in place of the configured one. 0 leaves the weight as it was.
    """

    type: Literal["command"] = "command"
    run: Annotated[tuple[str, ...], AfterValidator(_is_program)] = Field(min_length=1, max_length=64)
    user: Annotated[str, AfterValidator(_is_user)] = "nobody"  #: whom it runs as
    weighted: bool = False

    async def attempt(self, address: Address) -> Finding:
        """Serves if the program says so by its status. It has until `timeout_s`, and is then killed."""
        words = [word.replace(_ADDRESS, str(address)) for word in self.run]
        status, output = await _run(words, self.user)
        line = output.decode(errors="replace").strip().partition("\n")[0]
        said = f"status {status}{f', {shown(line)}' if line else ''}"
        if status and not (self.weighted and status >= 2):
            raise Fault(said)
        return Finding(said=said, weight=status - 2 if status else None)

    def question(self, address: Address) -> str:
        """As in "run /usr/local/bin/check for 10.0.0.1"."""
        return f"run {self.run[0]} for {address}"

    def __str__(self) -> str:
        return f"command {self.run[0]}"


async def _run(words: Sequence[str], user: str) -> tuple[int, bytes]:
    """Status and the beginning of the output of a program; it ends with its children when we are cut off.

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
    return program.returncode, bytes(begin)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
