"""How long other programs are waited for."""

import time
from contextvars import ContextVar


class Patience:
    """The time in which a call of another program has to succeed; each success begins it anew.

    When one has not, the calls after it do not wait either. Another thread may lose it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lost = False
        self.renew()

    def renew(self) -> None:
        """Begin the time anew; once lost, patience does not come back."""
        self._end_s = time.monotonic() + self._seconds

    def lose(self) -> None:
        """Wait for nothing any more."""
        self._lost = True

    def left_s(self) -> float:
        """What is left of the time, at least 0."""
        return 0.0 if self._lost else max(0.0, self._end_s - time.monotonic())


#: That of the work which this thread does.
patience: ContextVar[Patience] = ContextVar("patience")
