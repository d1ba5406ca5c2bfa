"""What follows for a service from the states of all its backends. No I/O and no clock.

A service has no state of its own for IPv4 and IPv6 together: its backends of one family serve the VIPs of
that family, so each part is judged alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loaded_mp.config.model import Backend
from loaded_mp.schedulers import scheduler_of
from loaded_mp.schedulers.scheduler import RISE_STEPS
from loaded_mp.services import Part
from loaded_mp.status import Wanted
from loaded_mp.supervisor.state import BackendState

States = Mapping[int, BackendState]  #: by backend id


@dataclass(frozen=True)
class ServiceState:
    """What one part of a service is. It begins as one that serves."""

    serves: bool = True  #: whether some backend gets new flows
    panics: bool = False  #: whether so few backends are up that checks are not believed
    quorum: bool | None = None  #: whether enough of them serve; None: not told yet


def judged(part: Part, states: States) -> ServiceState:
    """What a part is now. Its backends' states take note of what that means for them."""
    mine = [(states[number], backend) for number, backend in part.backends.items()]
    panics = _panics(part, [state for state, _ in mine])
    weight = _weight(mine, believed=not panics)
    if not weight and part.service.all_down == "spread":
        _weight(mine, believed=False)
    return ServiceState(weight > 0, panics, weight >= part.service.quorum)


def weights(part: Part, states: States) -> list[int]:
    """The shares of new flows that its backends have now, in their order."""
    rises = any(states[number].risen < 1 for number in part.backends)
    steps = 1 if scheduler_of(part.service.scheduler).compares or not rises else RISE_STEPS
    return [
        states[number].effective_weight(backend.weight, steps) for number, backend in part.backends.items()
    ]


def _weight(mine: list[tuple[BackendState, Backend]], believed: bool) -> int:
    """The weights of those that serve, added up, if checks are to be `believed` or not."""
    for state, _ in mine:
        state.believed, state.standby = believed, False
    others_serve = any(state.own_weight(each.weight) for state, each in mine if not each.backup)
    for state, each in mine:
        state.standby = each.backup and others_serve
    return sum(state.effective_weight(each.weight) for state, each in mine)


def _panics(part: Part, mine: list[BackendState]) -> bool:
    asked = [state.up for state in mine if state.wanted is not Wanted.MAINTENANCE]
    return bool(asked) and sum(asked) < part.service.panic_share * len(asked)


@dataclass(frozen=True)
class Turn:
    """Something about a part that has turned; `name` is that of the event."""

    name: str
    good: bool
    effect: str


#: What becomes of new clients by `all_down`.
_ALL_DOWN = {
    "drop": "packets of new clients are dropped",
    "reject": "new clients are rejected",
    "spread": "clients are spread over all backends",
}


def turns(part: Part, before: ServiceState, after: ServiceState) -> Iterator[Turn]:
    """What is to be said of a part that was `before`."""
    if before.panics and not after.panics:
        yield Turn("panic-over", True, "checks are believed again")
    if after.panics and not before.panics:
        yield Turn("panic", False, "too few backends are up: checks are not believed, all are used")
    if before.serves and not after.serves:
        yield Turn("no-backend", False, _ALL_DOWN[part.service.all_down])
    if after.serves and not before.serves:
        yield Turn("backends-again", True, "new clients are served")
    if after.quorum is not before.quorum and before.quorum is not None:
        yield Turn(
            "quorum-up" if after.quorum else "quorum-down",
            bool(after.quorum),
            "enough backends serve" if after.quorum else "too few backends serve",
        )
