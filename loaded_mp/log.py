"""The log: one line an event, `key=value` pairs, on standard error; to journald as fields."""

import logging
import os
import socket
import sys
import time

#: Prefixes by which journald knows the level (sd-daemon(3)).
_JOURNAL_LEVELS = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}
_JOURNAL = "/run/systemd/journal/socket"
#: Our own lines; those of libraries are of use from warnings on.
_OURS = logging.getLogger("loaded_mp")


class Event(str):
    """The text of an event, and what it is made of."""

    name: str
    values: dict[str, str]


def event(name: str, **values: object) -> Event:
    """The text of an event: `event=NAME` and its values; those with spaces or quotes are quoted."""
    texts = {key: str(value) for key, value in values.items()}
    made = Event(" ".join(f"{key}={_quoted(value)}" for key, value in {"event": name, **texts}.items()))
    made.name, made.values = name, texts
    return made


def _quoted(value: str) -> str:
    if value and not any(c in ' "=\\' or not c.isprintable() for c in value):
        return value
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + '"'


class _Formatter(logging.Formatter):
    """journald adds the time itself; elsewhere it comes first, in UTC (RFC 3339)."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += f" error={_quoted(self.formatException(record.exc_info))}"
        if self._journal:
            return _JOURNAL_LEVELS.get(record.levelname, "<6>") + text
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"time={moment}.{int(record.msecs):03}Z level={record.levelname.lower()} {text}"


class Journal(logging.StreamHandler):  # type: ignore[type-arg]  # generic for mypy only
    """To journald, each value as a field by which it can be looked for: `journalctl SERVICE=web`.

    What cannot go that way (a worker has no socket, a line is too long) goes to standard error, which
    journald reads too.
    """

    def __init__(self, path: str = _JOURNAL) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Formatter(journal=True))
        self._path = path
        self._process = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        try:
            if os.getpid() != self._process:
                raise OSError
            self._socket.sendto(self._datagram(record), self._path)
        except OSError:
            super().emit(record)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()

    def _datagram(self, record: logging.LogRecord) -> bytes:
        """A line in journald's native protocol, each value with its length: it may have several lines."""
        text = self.format(record)
        fields = {"PRIORITY": text[1], "MESSAGE": text[3:], "SYSLOG_IDENTIFIER": "loaded-mp"}
        if isinstance(record.msg, Event):
            fields["EVENT"] = record.msg.name
            fields |= {key.upper(): value for key, value in record.msg.values.items()}
        return b"".join(
            key.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
            for key, value in ((key, text.encode(errors="replace")) for key, text in fields.items())
        )


def set_level(level: str) -> None:
    """Log from `level` (debug, info, warning, error) on."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(level.upper())
    # Whoever keeps events gets them whatever is logged.
    _OURS.setLevel(min(logging.getLevelNamesMapping()[level.upper()], logging.INFO))


def start_log(level: str) -> None:
    """Send this process's log to standard error, from `level` (debug, info, warning, error) on."""
    handler: logging.Handler
    if _journald_listens():
        handler = Journal()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    set_level(level)


def _journald_listens() -> bool:
    """Whether standard error is a stream to journald (systemd.exec(5), JOURNAL_STREAM) that has a socket."""
    error = os.fstat(2)
    stream = os.environ.get("JOURNAL_STREAM", "")
    return stream == f"{error.st_dev}:{error.st_ino}" and os.path.exists(_JOURNAL)
