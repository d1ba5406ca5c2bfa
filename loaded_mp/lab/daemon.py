"""A loaded-mp that runs in a lab."""

import subprocess
import sys
from pathlib import Path
from typing import Self

from loaded_mp.control.client import Answer, ControlError, ask_in
from loaded_mp.lab.namespace import Namespace
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import BackendStatus, Status

_READY_S = 600.0  # the first start compiles
_STOP_S = 20.0


class Daemon:
    """A loaded-mp that runs in the balancer's namespace."""

    def __init__(self, namespace: Namespace, log: Path, process: subprocess.Popen[str]) -> None:
        self._namespace = namespace
        self._log = log
        self.process = process

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def logged(self, text: str, deadline_s: float = 10.0) -> None:
        """Wait until the log holds `text`. Raises TimeoutError."""
        wait_until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}", deadline_s)

    def ready(self) -> Self:
        """Wait until it serves. Raises RuntimeError with the log if it ends instead, or has compiled late."""
        wait_until(lambda: "event=ready" in self.log or self.process.poll() is not None, "ready", _READY_S)
        if self.process.poll() is not None:
            raise RuntimeError(f"loaded-mp ended with status {self.process.returncode}:\n{self.log}")
        self._compiled_in_time()
        return self

    def ask(self, command: str, answer_type: type[Answer], /, **arguments: object) -> Answer:
        """What it answers to a command; asked from here, as a process for each question takes its time.

        Raises RuntimeError if it does not answer.
        """
        try:
            return ask_in(f"/run/netns/{self._namespace.name}", command, answer_type, **arguments)
        except ControlError as error:
            raise RuntimeError(f"{error}\n{self.log}") from error

    def status(self) -> Status:
        """What it says of itself."""
        return self.ask("status", Status)

    def backends(self) -> dict[str, BackendStatus]:
        """The status of each backend by its address."""
        return {each.address: each for service in self.status().services for each in service.backends}

    def reload(self, config: str) -> None:
        """Have it take over this TOML in place of its file's. Raises RuntimeError with what it says."""
        words = self.process.args
        assert isinstance(words, list)
        Path(next(str(word) for word in words if str(word).endswith(".toml"))).write_text(config)
        self._namespace.run(loaded_mp(), "reload")

    def stop(self) -> None:
        """SIGTERM, and wait. Raises RuntimeError with the log if it fails or has compiled late."""
        if self.process.poll() is None:
            self.process.terminate()
        if self.process.wait(_STOP_S):
            raise RuntimeError(f"loaded-mp ended with status {self.process.returncode}:\n{self.log}")
        self._compiled_in_time()

    def _compiled_in_time(self) -> None:
        if "event=compiled-late" in self.log:
            raise RuntimeError(f"loaded-mp compiled while packets waited:\n{self.log}")


def loaded_mp() -> str:
    """The command beside this interpreter."""
    return str(Path(sys.executable).with_name("loaded-mp"))
