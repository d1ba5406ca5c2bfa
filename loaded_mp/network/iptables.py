"""Our own chains, by the iptables commands of the host, whichever variant they are (nft or legacy)."""

import os
import subprocess
from subprocess import PIPE
from typing import Literal

from loaded_mp.network.changes import AddChain
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.patience import Patience, patience

#: Forces a variant: nft or legacy. Unset or empty: what `iptables` is on this host.
VARIANT = "LOADED_MP_IPTABLES"

_LOCK_WAIT_S = 10
_TIMEOUT_S = 30.0
#: How often a call looks whether it is still waited for.
_LOOK_S = 0.1
#: Exit status of all iptables commands where the kernel or the lock of others is in the way (xtables.h).
_RESOURCE_PROBLEM = 4

#: More jumps to one of our chains than this are not taken away at once.
_MOST_JUMPS = 16


def variant() -> str:
    """The variant that the environment forces, or an empty string."""
    return os.environ.get(VARIANT, "")


def apply(change: AddChain) -> None:
    """Put the chain in place as one transaction, replacing what it held; the jump to it is there once.

    Raises NetworkError with what iptables says.
    """
    jump = _run(change.tool, "", ["-t", change.table, "-C", change.hook, *change.jump.split()])
    _restore(change, change.text(jump=jump.returncode != 0))


def undo(change: AddChain) -> None:
    """Take the jump and the chain away; what is gone already is fine. Raises NetworkError."""
    delete = ["-t", change.table, "-D", change.hook, *change.jump.split()]
    for _ in range(_MOST_JUMPS):
        if _run(change.tool, "", delete).returncode:
            break
    # Naming the chain makes it and empties it, so that it can be deleted whether or not it was there.
    _restore(change, f"*{change.table}\n:{change.name} - [0:0]\n-X {change.name}\nCOMMIT\n")


def saved(family: Literal[4, 6], table: str) -> str:
    """What iptables-save says of a table, with counters. Raises NetworkError."""
    return _saved(command_name("iptables" if family == 4 else "ip6tables", variant()), "-c", "-t", table)


def rules(tool: str, table: str) -> list[str]:
    """The rules of a table, each as iptables-save writes it: `-A CHAIN ...`. Raises NetworkError."""
    return [line for line in _saved(tool, "-t", table).splitlines() if line.startswith("-A ")]


def command_name(tool: str, variant: str, suffix: str = "") -> str:
    """The command of a variant: "nft", "legacy", or "" for what the host has chosen."""
    return tool + (f"-{variant}" if variant else "") + suffix


def _saved(tool: str, *options: str) -> str:
    done = _call([f"{tool}-save", *options])
    if done.returncode:
        raise NetworkError(f"{tool}-save: {' '.join(done.stderr.split())}")
    return done.stdout


def _restore(change: AddChain, text: str) -> None:
    done = _run(f"{change.tool}-restore", text, ["--noflush"])
    if done.returncode:
        raise NetworkError(
            f"{done.args[0]}, table {change.table}: {' '.join(done.stderr.split())}; "
            "`loaded-mp diagnose` says what this machine lacks"
        )


def _run(command: str, text: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    lock_wait_s = max(1, min(_LOCK_WAIT_S, int(_patience().left_s())))
    done = _call([command, "-w", str(lock_wait_s), *arguments], text)
    if done.returncode == _RESOURCE_PROBLEM and "lock" in done.stderr:
        raise NetworkError(f"{command}: {' '.join(done.stderr.split())}")
    return done


def _call(words: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        with subprocess.Popen(words, text=True, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            said, error = _talk(words[0], process, text)
    except FileNotFoundError:
        raise NetworkError(f"there is no command {words[0]}: install the package iptables") from None
    except OSError as no_process:
        raise NetworkError(f"{words[0]} cannot be started: {no_process.strerror}") from no_process
    return subprocess.CompletedProcess(words, process.returncode, said, error)


def _talk(name: str, process: subprocess.Popen[str], text: str) -> tuple[str, str]:
    """What the process says of `text` until it ends; if that takes too long, it is ended."""
    waited_for = _patience()
    unsaid: str | None = text
    while waited_for.left_s():
        try:
            answer = process.communicate(unsaid, timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            unsaid = None
        else:
            waited_for.renew()
            return answer
    process.kill()
    raise NetworkError(f"{name} did not end in time: is another one stuck?")


def _patience() -> Patience:
    return patience.get(None) or Patience(_TIMEOUT_S)
