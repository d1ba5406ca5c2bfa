"""Asking a running daemon."""

import http.client
import json
import socket
from typing import Any

from loaded_mp.control.address import CONTROL_ADDRESS, TIMEOUT_S
from loaded_mp.status import BackendStatus, FlowTableStatus, ServiceStatus, Status, WorkerStatus


class ControlError(Exception):
    """The daemon does not answer, or says no; the message is for people."""


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(CONTROL_ADDRESS)


def _ask(method: str, path: str) -> Any:
    connection = _Connection("loaded-mp")
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except ConnectionRefusedError:
        raise ControlError(
            "no loaded-mp runs in this network namespace; start it, or look in its namespace with"
            " 'ip netns exec NAME loaded-mp status'"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(f"the daemon does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status == http.client.FORBIDDEN:
        raise ControlError("only root may talk to the daemon; use sudo")
    if answer.status != http.client.OK:
        raise ControlError(f"the daemon refuses: {body.decode(errors='replace').strip()}")
    return json.loads(body)


def status() -> Status:
    """What the daemon of this network namespace says of itself. Raises ControlError."""
    return status_from(_ask("GET", "/status"))


def status_from(data: dict[str, Any]) -> Status:
    """What `loaded-mp status --json` printed, as it was before."""
    return Status(
        **{
            **data,
            "services": tuple(
                ServiceStatus(
                    **{
                        **service,
                        "vips": tuple(service["vips"]),
                        "listen": tuple(service["listen"]),
                        "backends": tuple(BackendStatus(**each) for each in service["backends"]),
                    }
                )
                for service in data["services"]
            ),
            "workers": tuple(WorkerStatus(**each) for each in data["workers"]),
            "flow_table": FlowTableStatus(**data["flow_table"]),
        }
    )


def reload() -> list[str]:
    """Let the daemon read its configuration again; the mistakes that kept it from it. Raises ControlError."""
    mistakes: list[str] = _ask("POST", "/reload")
    return mistakes
