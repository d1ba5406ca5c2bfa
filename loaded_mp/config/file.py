"""Reading a configuration file, which may be no file at all, or far too large."""

import os
import stat
from pathlib import Path

from loaded_mp.config.errors import ConfigError, Mistake

MAX_FILE_BYTES = 1 << 20


def read_file(path: Path) -> bytes:
    """The bytes of a configuration file. Raises ConfigError if it cannot be read, is no file or is too large.

    On a file system that hangs it waits for as long as that does; see config/bounded.py.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _refused(path, "is a device or a pipe, expected a file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a path with a NUL
        raise _refused(path, f"cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _refused(path, f"is too large, expected {MAX_FILE_BYTES:,} bytes or less")
    return content


def _open(path: str, flags: int) -> int:
    # A FIFO would wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _refused(path: Path, text: str) -> ConfigError:
    return ConfigError(Mistake(str(path), "", text))
