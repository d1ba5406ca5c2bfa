"""The log: one line an event, `key=value` pairs, on standard error."""

import logging
import os
import sys
import time

#: Prefixes by which journald knows the level (sd-daemon(3)).
_JOURNAL_LEVELS = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}


def event(name: str, **values: object) -> str:
    """The text of an event: `event=NAME` and its values; those with spaces or quotes are quoted."""
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in {"event": name, **values}.items())


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


def set_level(level: str) -> None:
    """Log from `level` (debug, info, warning, error) on."""
    logging.getLogger().setLevel(level.upper())


def start_log(level: str) -> None:
    """Send this process's log to standard error, from `level` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
