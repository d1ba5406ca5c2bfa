"""What is known of one backend, and what follows from it: the only home of both."""

import math
import time
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from loaded_mp.checks.check import Check, Finding
from loaded_mp.checks.health import Health
from loaded_mp.checks.runner import Result
from loaded_mp.config.model import OnDown, Service
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


#: What takes a backend out, the strictest first.
_STRICTEST = (Wanted.MAINTENANCE, Wanted.DRAIN)
_MAX_FLAPS = 100
#: Flags of what becomes of the flows of a backend that is down, by setting and protocol.
_ON_DOWN = (
    ("tcp", "keep", Flag.KEEP_TCP),
    ("tcp", "reset", Flag.RESET),
    ("udp", "keep", Flag.KEEP_UDP),
    ("other", "keep", Flag.KEEP_OTHER),
)
_UNASKED = Finding(said="not checked yet")


@dataclass(frozen=True)
class Checked:
    """What one check says."""

    health: Health
    finding: Finding = _UNASKED
    asked_s: float | None = None  #: CLOCK_MONOTONIC; None: not yet
    took_s: float | None = None  #: the last attempt

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
    observed_down: bool = False  #: it is down by what was seen of it
    checks: dict[Check, Checked] = field(default_factory=dict)
    noted: dict[int, Checked] | None = None  #: by an earlier supervisor, by `Check.key`; None: there was none
    service: Service | None = None  #: whose backend it is, for its settings
    slow: bool = False  #: whether it starts slowly; not what a daemon finds up when it starts
    went_down_s: list[float] = field(default_factory=list)  #: the last times, CLOCK_MONOTONIC
    waits: bool = False  #: whether checks pass and it is not up yet, as it went down so often
    #: What the other backends of the service make of it, see service_state.py.
    believed: bool = True  #: whether counts what checks say
    standby: bool = False  #: whether others serve in its place

    def flags(self, on_down: OnDown) -> int:
        """For workers: values of Flag."""
        if self.usable:
            return Flag.USABLE | self.stops
        flags: int = self.stops
        if not self._wants(Wanted.MAINTENANCE):
            flags |= sum(flag for protocol, word, flag in _ON_DOWN if getattr(on_down, protocol) == word)
        return flags

    @property
    def usable(self) -> bool:
        """Whether its flows stay."""
        return (self.up or not self.believed) and not self._wants(Wanted.MAINTENANCE)

    @property
    def risen(self) -> float:
        """How much of its weight it has come to since it is up, 0 to 1."""
        lasts_s = self.service.slow_start_s if self.service else 0
        if not (self.slow and self.up and lasts_s):
            return 1
        return min(1, (time.monotonic() - self.since_s) / lasts_s)

    def effective_weight(self, configured: int, steps: int = 1) -> int:
        """The share of new flows that it has now, where a weight of 1 counts as `steps`."""
        return 0 if self.standby else self.own_weight(configured, steps)

    def own_weight(self, configured: int, steps: int = 1) -> int:
        """As `effective_weight`, whatever the other backends of the service are."""
        if not self.usable or self._wants(Wanted.DRAIN):
            return 0
        said = [each.finding for each in self.checks.values()]
        weight = next((each.weight for each in said if each.weight is not None), configured)
        if self.weight is not None:
            weight = self.weight
        percent = min((each.percent for each in said if each.percent is not None), default=100)
        return math.ceil(weight * steps * self.risen * percent / 100)

    def left_out(self, configured: int) -> str:
        """Why it gets no new flows; empty if it gets some."""
        if self.up or not self.believed:
            if strict := next((each for each in _STRICTEST if self._wants(each)), None):
                return strict
            if not self.own_weight(configured):
                return "weight 0"
            return "backup, and others serve" if self.standby else ""
        return f"down: {self.why}"

    @property
    def why(self) -> str:
        """Why it is up or down, for people."""
        if not (self.waits and self.service):
            return self.cause
        left_s = max(0, self.since_s + self.service.flap_wait_s - time.monotonic())
        return f"passes, but went down {self._flaps} times: waits {left_s:.0f} s more"

    @property
    def certificate_expires_s(self) -> float | None:
        """When the first of its certificates expires, Unix time; None: none was seen."""
        times = (each.finding.certificate_expires_s for each in self.checks.values())
        return min((each for each in times if each is not None), default=None)

    def _wants(self, what: Wanted) -> bool:
        """Whether the operator or the backend itself wants it."""
        return self.wanted == what or any(each.finding.wanted == what for each in self.checks.values())

    def follow(self, service: Service) -> None:
        """Be a backend of this service from now on.

        Of a check that is new the state so far is what it has said.
        """
        checks = service.checks
        guessed = self.noted is None and all(each.health.guessed for each in self.checks.values())
        so_far = Checked(Health(self.up, guessed=guessed))
        noted = self.noted or {}
        self.checks = {check: self.checks.get(check) or noted.get(check.key) or so_far for check in checks}
        self.noted, self.service = None, service
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
        if self._settle(result.text):
            return Change.UP if self.up else Change.DOWN
        if before.health.guessed and not self.up and not health.up:
            self.cause, self.slow = result.text, True  # the guess was right
            return Change.DOWN
        return Change.SHARE if after.share != before.share else None

    def observed(self, cause: str) -> bool:
        """Be down by what was seen of it, until its checks say that it is up; whether it was up."""
        self.checks = {check: Checked(Health(False, guessed=False), Finding(cause)) for check in self.checks}
        self.observed_down = self._settle(cause)
        return self.observed_down

    def _settle(self, cause: str) -> bool:
        """Draw the conclusion from all checks; whether it is another one than before.

        Of those that may be silent only what they have said counts, unless there are no others.
        """
        loud = [
            each for check, each in self.checks.items() if check.silence_is_fault or not each.health.guessed
        ]
        says = [each.health.up for each in loud or self.checks.values()]
        some_do = self.service and self.service.checks_needed == "any"
        up = any(says) if some_do and says else all(says)
        self.waits = up and not self.up and self._has_to_wait()
        if up == self.up or self.waits:
            return False
        self.up, self.since_s, self.cause = up, time.monotonic(), cause
        if not up:
            self.slow = True
            self.went_down_s = [*self.went_down_s[1 - _MAX_FLAPS :], self.since_s]
        self.observed_down = False
        return True

    def _has_to_wait(self) -> bool:
        service = self.service
        return (
            service is not None
            and service.flaps is not None
            and time.monotonic() < self.since_s + service.flap_wait_s
            and self._flaps >= service.flaps
        )

    @property
    def _flaps(self) -> int:
        """How often it went down within `flaps_within_s` up to the last time."""
        within_s = self.service.flaps_within_s if self.service else 0
        return sum(each >= self.since_s - within_s for each in self.went_down_s)
