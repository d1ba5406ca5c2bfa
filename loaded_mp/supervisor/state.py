"""What is known of one backend, and what follows from it: the only home of both."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from loaded_mp.checks.check import Check, Finding
from loaded_mp.checks.health import Health
from loaded_mp.checks.runner import Result
from loaded_mp.memory.snapshot import Flag
from loaded_mp.status import Wanted


class Stops(IntEnum):
    """What is done about a backend's TCP connections before it, or the daemon, stops."""

    NOT = 0
    ENDING = Flag.ENDING
    ENDED = Flag.ENDING | Flag.ENDED


class Change(StrEnum):
    """What the result of a check made of a backend; the value names the event."""

    UP = "backend-up"
    DOWN = "backend-down"
    SHARE = "backend-share"  #: what goes to it, by its agent's word or a weighted command


_UNASKED = Finding(said="not checked yet")


@dataclass(frozen=True)
class Checked:
    """What one check says."""

    health: Health
    finding: Finding = _UNASKED
    asked_s: float | None = None  #: CLOCK_MONOTONIC; None: not yet
    took_s: float | None = None

    @property
    def share(self) -> tuple[int | None, int | None, str | None]:
        """What it says of the backend's share."""
        return self.finding.weight, self.finding.percent, self.finding.wanted


@dataclass
class BackendState:
    """A backend counts as up until a check says otherwise."""

    wanted: Wanted = Wanted.READY
    weight: int | None = None  #: the operator's, in place of the configured one
    up: bool = True  #: what checks say
    since_s: float = field(default_factory=time.monotonic)  #: when it last went up or down, CLOCK_MONOTONIC
    cause: str = ""  #: why
    stops: Stops = Stops.NOT
    checks: dict[Check, Checked] = field(default_factory=dict)
    noted: dict[int, Checked] | None = None  #: by an earlier supervisor, by `Check.key`; None: there was none
    needed: str = "all"  #: "all" or "any" of the checks

    @property
    def flags(self) -> int:
        """For workers: values of Flag."""
        return self.usable * Flag.USABLE | self.stops

    @property
    def usable(self) -> bool:
        """Whether its flows stay."""
        return self.up and Wanted.MAINTENANCE not in self._wanted

    def effective_weight(self, configured: int) -> int:
        """The share of new flows that it has now."""
        if not self.usable or Wanted.DRAIN in self._wanted:
            return 0
        said = [each.finding for each in self.checks.values()]
        weight = next((each.weight for each in said if each.weight is not None), configured)
        if self.weight is not None:
            weight = self.weight
        percent = min((each.percent for each in said if each.percent is not None), default=100)
        return math.ceil(weight * percent / 100)

    @property
    def certificate_expires_s(self) -> float | None:
        """When the first of its certificates expires, Unix time; None: none was seen."""
        times = (each.finding.certificate_expires_s for each in self.checks.values())
        return min((each for each in times if each is not None), default=None)

    @property
    def _wanted(self) -> set[str]:
        """What the operator and the backend itself want; the strictest word counts."""
        return {self.wanted, *(each.finding.wanted or Wanted.READY for each in self.checks.values())}

    def follow(self, checks: Sequence[Check], needed: str) -> None:
        """Be checked so from now on. Of a check that is new the state so far is what it has said."""
        guessed = self.noted is None and all(each.health.guessed for each in self.checks.values())
        so_far = Checked(Health(self.up, guessed=guessed))
        noted = self.noted or {}
        self.checks = {check: self.checks.get(check) or noted.get(check.key) or so_far for check in checks}
        self.noted, self.needed = None, needed
        self._settle("other checks" if checks else "not checked")

    def heard(self, result: Result) -> Change | None:
        """Take over what a check found; what changed by that.

        What was asked before the last change says nothing of the state since.
        """
        check = result.target.check
        if check not in self.checks or result.started_s < self.since_s:
            return None
        before = self.checks[check]
        health = before.health.after(result.finding.fault is None, check.rise, check.fall)
        finding = result.finding.after(before.finding)
        self.checks[check] = after = Checked(health, finding, result.started_s, result.took_s)
        if health.up != before.health.up and self._settle(result.text):
            return Change.UP if self.up else Change.DOWN
        if before.health.guessed and not (
            self.up or health.up
        ):  # the guess was right, and now there is a cause
            self.cause = result.text
            return Change.DOWN
        return Change.SHARE if after.share != before.share else None

    def _settle(self, cause: str) -> bool:
        """Draw the conclusion from all checks; whether it is another one than before."""
        says = [each.health.up for each in self.checks.values()]
        up = any(says) if self.needed == "any" and says else all(says)
        if up == self.up:
            return False
        self.up, self.since_s, self.cause = up, time.monotonic(), cause
        return True
