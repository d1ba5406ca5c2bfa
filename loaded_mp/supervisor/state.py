"""What is known of one backend, and what follows from it: the only home of both."""

import time
from dataclasses import dataclass, field
from enum import IntEnum

from loaded_mp.checks.health import Health
from loaded_mp.memory.snapshot import Flag
from loaded_mp.status import Wanted


class Stops(IntEnum):
    """What is done about a backend's TCP connections before it, or the daemon, stops."""

    NOT = 0
    ENDING = Flag.ENDING
    ENDED = Flag.ENDING | Flag.ENDED


@dataclass
class BackendState:
    """A backend counts as up until a check says otherwise."""

    wanted: Wanted = Wanted.READY
    weight: int | None = None  #: the operator's, in place of the configured one
    health: Health = field(default_factory=Health)
    since_s: float = field(default_factory=time.monotonic)  #: when it last went up or down, CLOCK_MONOTONIC
    cause: str = ""  #: why
    stops: Stops = Stops.NOT

    @property
    def up(self) -> bool:
        """What checks say."""
        return self.health.up

    @property
    def flags(self) -> int:
        """For workers: values of Flag."""
        return self.usable * Flag.USABLE | self.stops

    @property
    def usable(self) -> bool:
        """Whether its flows stay."""
        return self.up and self.wanted is not Wanted.MAINTENANCE

    def effective_weight(self, configured: int) -> int:
        """The share of new flows that it has now."""
        if not self.usable or self.wanted is Wanted.DRAIN:
            return 0
        return configured if self.weight is None else self.weight

    def heard(self, health: Health, cause: str) -> bool:
        """Take over what a check's result makes of its health; whether it went up or down by that."""
        changed = health.up != self.up
        self.health = health
        if changed:
            self.since_s, self.cause = time.monotonic(), cause
        return changed
