"""Where the control socket is."""

import os
from pathlib import Path

from loaded_mp.network.record import DIRECTORY

#: How long one command may take, in seconds.
TIMEOUT_S = 10.0
#: Who may ask: root, and the members of `control_group`. Connections of others are closed unread.
ALLOWED_USER = 0


def control_path(namespace: str = "/proc/self/ns/net") -> Path:
    """The control socket of a network namespace, named by its inode as the record of changes is."""
    return DIRECTORY / f"{os.stat(namespace).st_ino}.socket"


def lock_path(control: Path) -> Path:
    """What the daemon holds locked (flock(2)) as long as it lives."""
    return control.with_suffix(".lock")
