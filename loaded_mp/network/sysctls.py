"""Settings below /proc/sys of the current network namespace."""

import logging
import os
from glob import glob
from pathlib import Path

from loaded_mp.log import event
from loaded_mp.network.changes import SetSysctl
from loaded_mp.network.errors import NetworkError

log = logging.getLogger(__name__)

_ROOT = Path("/proc/sys")

#: What a plan may look at.
_READ = (
    "net/ipv4/ip_forward",
    "net/ipv4/icmp_echo_ignore_broadcasts",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/send_redirects",
    "net/ipv4/conf/all/accept_redirects",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/accept_ra",
)


def read_sysctls() -> dict[str, str]:
    """Every setting that a plan may look at: path below /proc/sys and value."""
    paths = [path for pattern in _READ for path in sorted(glob(pattern, root_dir=_ROOT))]
    return {path: (_ROOT / path).read_text().strip() for path in paths}


def apply(change: SetSysctl) -> None:
    """Write the value. Raises NetworkError if the kernel refuses and it is needed."""
    try:
        _write(change.path, change.value)
    except NetworkError as error:
        # A container's /proc/sys is read-only; what it needs comes from its engine.
        if change.needed:
            raise
        log.warning(event("setting-left", cause=str(error)))


def holds(change: SetSysctl) -> bool:
    """Whether the setting is as wanted, or cannot be: it is gone, or may not be written and is not needed."""
    path = _ROOT / change.path
    return read(change.path) in (change.value, "") or not (change.needed or os.access(path, os.W_OK))


def read(path: str) -> str:
    """A setting's value; an empty string if there is none."""
    try:
        # Without a buffer, as this is done twice a second.
        with open(f"{_ROOT}/{path}", "rb", 0) as file:
            return file.read().decode().strip()
    except OSError:
        return ""


def undo(change: SetSysctl) -> None:
    """Write the previous values; settings that are gone with their interface are passed over."""
    if change.previous is None:
        return
    for path, value in ((change.path, change.previous), *change.along):
        if (_ROOT / path).exists() and (_ROOT / path).read_text().strip() != value:
            _write(path, value)


def _write(path: str, value: str) -> None:
    try:
        (_ROOT / path).write_text(value)
    except FileNotFoundError:
        raise NetworkError(
            f"/proc/sys/{path}: the kernel has no such setting; is {path.split('/')[1]} switched on?"
        ) from None
    except OSError as error:
        raise NetworkError(
            f"/proc/sys/{path}: cannot write {value}: {error.strerror}; loaded-mp has to run as root, and "
            "in a container with read-only /proc/sys the setting has to come from outside (docker: --sysctl)"
        ) from error
