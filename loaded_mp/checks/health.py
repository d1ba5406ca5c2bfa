"""From results of checks to up and down. No I/O, no clock."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """What the checks so far say of one backend.

    A backend counts as up before its first check, so that a start refuses nobody; but that is a guess, and
    the first result decides at once. HAProxy does the same. keepalived also starts with up, but waits for
    `fall` failures, and would send clients to a dead machine all that time.
    """

    up: bool = True
    contrary: int = 0  #: results in a row that say the opposite
    guessed: bool = True  #: no check has ended yet

    def after(self, passed: bool, rise: int, fall: int) -> "Health":
        """The health after one more result: `rise` successes make it up, `fall` failures down."""
        if passed == self.up:
            return Health(self.up, 0, False)
        needed = 1 if self.guessed else rise if passed else fall
        if self.contrary + 1 >= needed:
            return Health(passed, 0, False)
        return Health(self.up, self.contrary + 1, False)
