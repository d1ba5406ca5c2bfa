"""Asking a running daemon."""

import fcntl
import http.client
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from loaded_mp.control.address import ALLOWED_USER, LONG_TIMEOUT_S, TIMEOUT_S, control_path, lock_path

Answer = TypeVar("Answer")
#: So long a command waits for a daemon that is restarting.
RESTART_S = 10.0
_POLL_S = 0.05
_ONLY_ROOT = "only root, and the group that is set as control_group, may talk to the daemon; use sudo"


class ControlError(Exception):
    """The daemon does not answer, or says no; the message is for people."""


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        deadline_s = time.monotonic() + RESTART_S
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(TIMEOUT_S)
            try:
                return self.sock.connect(self.host)
            except ConnectionRefusedError:
                # The path is there and nobody listens: at this moment one daemon becomes the next.
                self.sock.close()
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(_POLL_S)

    def await_answer(self, timeout_s: float, say: Callable[[], object]) -> None:
        """Wait for the answer to begin; `say` that this takes its time. Raises TimeoutError."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            say()
            self.sock.settimeout(timeout_s - TIMEOUT_S)
            self.sock.recv(1, socket.MSG_PEEK)


def ask(command: str, answer_type: type[Answer], /, **arguments: object) -> Answer:
    """What the daemon of this network namespace answers to a command of control/commands.py.

    Raises ControlError.
    """
    return _understood(_post(f"/{command}", to_json(arguments)), answer_type)


def ask_for_long(
    command: str, answer_type: type[Answer], say: Callable[[], object], /, **arguments: object
) -> Answer:
    """As `ask`, for a command that may take its time: `say` tells people that it does."""
    return _understood(_post(f"/{command}", to_json(arguments), say=say), answer_type)


def ask_in(namespace: str, command: str, answer_type: type[Answer], /, **arguments: object) -> Answer:
    """As `ask`, of the daemon of the network namespace at a path."""
    return _understood(_post(f"/{command}", to_json(arguments), namespace), answer_type)


def is_running() -> bool:
    """Whether a daemon holds the lock of this network namespace, also while it starts or stops."""
    try:
        with lock_path(control_path()).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _understood(body: bytes, answer_type: type[Answer]) -> Answer:
    """The answer that a body holds. Raises ControlError."""
    try:
        return TypeAdapter(answer_type).validate_json(body)
    except ValidationError:
        raise ControlError(
            "the daemon's answer is not understood: it runs another version; restart it"
        ) from None


def _post(
    path: str, body: bytes, namespace: str = "/proc/self/ns/net", say: Callable[[], object] | None = None
) -> bytes:
    connection = _Connection(str(control_path(namespace)))
    timeout_s = LONG_TIMEOUT_S if say else TIMEOUT_S
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        if say:
            connection.await_answer(timeout_s, say)
        answer = connection.getresponse()
        said = answer.read()
    except PermissionError:
        raise ControlError(_ONLY_ROOT) from None
    except ConnectionRefusedError:
        raise ControlError(
            f"loaded-mp has not answered for {RESTART_S:g} s: it still starts, or it was killed and its"
            " workers go on alone; its log says which. A start takes them over, 'loaded-mp cleanup' ends them"
        ) from None
    except FileNotFoundError:
        raise ControlError(
            "no loaded-mp runs in this network namespace; start it, or look in its namespace with"
            " 'ip netns exec NAME loaded-mp status'"
        ) from None
    except (ConnectionResetError, BrokenPipeError) as error:  # also http.client.RemoteDisconnected
        if os.geteuid() != ALLOWED_USER:
            raise ControlError(_ONLY_ROOT) from None
        raise ControlError(
            "the daemon closed the connection: too many are open, or it stops; try again"
        ) from error
    except TimeoutError:
        raise ControlError(
            f"no answer within {timeout_s:g} s; what was asked for may still be done: see the daemon's log"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(f"the daemon does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ControlError(f"the daemon refuses: {said.decode(errors='replace').strip()}")
    return said
