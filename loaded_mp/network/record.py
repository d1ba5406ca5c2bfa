"""What was changed on the host, on disk before it is done, so that a crash leaves nothing behind.

The file is named by the inode of the network namespace. Inodes are used again, so the file also says
which namespace it is about: its cookie (SO_NETNS_COOKIE, Linux 5.14) never comes twice in one boot.
"""

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ValidationError

from loaded_mp.network.changes import Change
from loaded_mp.network.errors import NetworkError

DIRECTORY = Path("/run/loaded-mp")

#: asm-generic/socket.h.
_SO_NETNS_COOKIE = 71


class Record(BaseModel):
    """The changes made in one network namespace, in the order in which they were made."""

    namespace: str
    changes: tuple[Change, ...] = ()


def read_record() -> Record | None:
    """The record of the current network namespace; None if nothing was changed.

    Raises NetworkError if there is one that cannot be read.
    """
    path = _path()
    try:
        record = Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise NetworkError(
            f"{path}: not a record of changes: {error}; take the changes back by hand and delete it"
        ) from error
    return record if record.namespace == current_namespace() else None


def write_record(record: Record) -> None:
    """Replace the record on disk, or delete it if it holds no change. Raises NetworkError."""
    path = _path()
    try:
        if not record.changes:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(record.model_dump_json(indent=1))
        new.replace(path)
    except OSError as error:
        raise NetworkError(f"{path}: cannot write: {error.strerror}; loaded-mp has to run as root") from error


def current_namespace() -> str:
    """What tells this network namespace from all others, also from those of before the last boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        with socket.socket(socket.AF_UNIX) as any_socket:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:  # an older kernel
        cookie = b""
    return f"{boot}-{cookie.hex()}"


def _path() -> Path:
    return DIRECTORY / f"{os.stat('/proc/self/ns/net').st_ino}.json"
