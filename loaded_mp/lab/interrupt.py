"""Ending early in good order: what a lab has built goes before its process does."""

import signal
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


def interrupt_on_signals() -> None:
    """Let SIGTERM, and SIGHUP of a terminal that is gone, raise KeyboardInterrupt, as Ctrl-C does.

    What it was started to ignore, as by nohup, stays ignored.
    """
    for number in _NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Shells pass on the SIGHUP that came to all already: the second must not interrupt the tidying up.
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
