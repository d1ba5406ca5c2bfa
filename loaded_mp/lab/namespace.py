"""One network namespace and the programs in it."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from loaded_mp.lab.wait import wait_until

_PREFIX = "lmp"
_STOP_S = 5.0

_numbers = itertools.count()


def _ip(*words: str, text: str | None = None) -> None:
    done = subprocess.run(["ip", *words], input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def new_prefix() -> str:
    """How the names of everything begin that one lab of this process makes."""
    return f"{_PREFIX}{os.getpid()}.{next(_numbers)}-"


def _processes(name: str) -> list[int]:
    done = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, timeout=30, check=False
    )
    return [int(pid) for pid in done.stdout.split()]


def _end_processes(name: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not _processes(name), f"the processes in {name} end", _STOP_S)
            break


class Namespace:
    """Made when constructed, removed with everything in it by `remove`."""

    def __init__(self, name: str) -> None:
        """`name` begins with the lab's prefix, by which `remove_leftovers` knows it."""
        self.name = name
        self._running: list[subprocess.Popen[str]] = []
        _ip("netns", "add", self.name)
        self.ip("link set lo up")
        # No address is ever tentative, so the first packet over a new link finds its way.
        self.sysctl("net/ipv6/conf/default/accept_dad", 0)

    def ip(self, *commands: str) -> None:
        """Run `ip` commands in here, all by one process. Raises RuntimeError."""
        _ip("-n", self.name, "-batch", "-", text="\n".join(commands) + "\n")

    def _command(self, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def run(
        self, *words: str, timeout_s: float = 30.0, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. Raises RuntimeError with what it said if it fails and `check` is set."""
        done = subprocess.run(
            self._command(words), input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start(self, *words: str, output: IO[str] | int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a program that runs until it ends, is stopped, or the namespace is removed."""
        process = subprocess.Popen(
            self._command(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        return process

    def talk(self, *words: str) -> subprocess.Popen[str]:
        """Start a program to talk with over its standard input and output."""
        process = subprocess.Popen(
            self._command(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._running.append(process)
        return process

    def sysctl(self, path: str, value: str | int) -> None:
        """Set one of /proc/sys, as in `net/ipv4/ip_forward`."""
        self.run("sysctl", "-qw", f"{path.replace('/', '.')}={value}")

    def processes(self) -> list[int]:
        """Every process in the namespace."""
        return _processes(self.name)

    def remove(self) -> None:
        """End every process in the namespace, then delete it."""
        _end_processes(self.name)
        for process in self._running:
            process.wait(_STOP_S)
            for stream in (process.stdin, process.stdout):
                if stream:
                    with contextlib.suppress(BrokenPipeError):  # what is left to be written has no reader
                        stream.close()
        with contextlib.suppress(RuntimeError):
            _ip("netns", "delete", self.name)


def connect(one: Namespace, interface: str, other: Namespace, other_interface: str, mtu: int = 1500) -> None:
    """Join two namespaces by a pair of interfaces, both up."""
    _ip(
        *f"link add {interface} netns {one.name} mtu {mtu} type veth".split(),
        *f"peer name {other_interface} netns {other.name} mtu {mtu}".split(),
    )
    one.ip(f"link set {interface} up")
    other.ip(f"link set {other_interface} up")


def remove_leftovers() -> list[str]:
    """Remove the namespaces and folders of labs whose process is gone; their names."""

    def leftovers(folder: str) -> list[Path]:
        found = []
        for path in Path(folder).glob(f"{_PREFIX}*"):
            owner = re.match(rf"{_PREFIX}(\d+)\.", path.name)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                found.append(path)
        return found

    namespaces, folders = leftovers("/run/netns"), leftovers(tempfile.gettempdir())
    for path in namespaces:
        _end_processes(path.name)
        with contextlib.suppress(RuntimeError):
            _ip("netns", "delete", path.name)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in namespaces + folders]
