"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
_POLL_S = 0.02


def wait_until(condition: Callable[[], Result], what: str, deadline_s: float = 10.0) -> Result:
    """The first true result of `condition`. Raises TimeoutError, which names `what` was waited for."""
    end = time.monotonic() + deadline_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s:g} s in vain: {what}")
        time.sleep(_POLL_S)
