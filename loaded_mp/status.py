"""What a running daemon can say about itself: for /metrics, the control socket and the screen.

Counters only ever rise while the daemon runs, also over the death of a worker. Their keys are the names of
an enumeration in memory/counters.py in lower case; the enumeration says what is counted.
"""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

#: Where open flows decide who gets new ones, so many show the share of each backend.
TRIED_FLOWS = 1_000


class Wanted(StrEnum):
    """What the operator wants of a backend."""

    READY = "ready"
    DRAIN = "drain"  #: its flows stay, no new ones
    MAINTENANCE = "maintenance"  #: nothing goes there


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackendStatus(_Model):
    """One backend of one service."""

    name: str
    address: str
    weight: int  #: as configured
    weight_wanted: int | None = None  #: the operator's, in its place
    effective_weight: int  #: 0 while it is down
    backup: bool = False  #: it serves only while no other backend of the service can
    wanted: Wanted
    up: bool
    since_s: float  #: seconds since it last went up or down
    cause: str  #: why it did; empty if nothing has happened yet
    certificate_expires_s: float | None = None  #: Unix time; None: no check has seen one
    flows: int  #: open now
    most_flows: int | None = None  #: with so many it gets no new ones; None: no limit
    full: bool = False  #: whether it gets none because of that
    counters: dict[str, int]  #: see BackendCounter; those of replies only where they pass this machine
    rates: dict[str, float]  #: of the same, per second


class ServiceStatus(_Model):
    """One service with its backends."""

    name: str
    vips: tuple[str, ...]
    listen: tuple[str, ...]  #: as in the configuration; empty: everything
    scheduler: str
    scheduler_fault: str = ""  #: why the operator's own gives no slots; empty: it does, or it is another one
    forwarding: str
    affinity: str
    checks: tuple[str, ...]  #: what backends are asked for; empty: they are not checked
    checks_needed: str  #: "all" or "any" of them
    backends: tuple[BackendStatus, ...]


class CheckStatus(_Model):
    """What one check of one backend has found the last time."""

    service: str
    backend: str
    address: str  #: of the backend
    check: str  #: what is asked, as in "connect to 10.0.0.1:80"
    up: bool  #: what its results so far say
    passed: bool | None  #: what the last one said; None: there was none yet
    said: str  #: what was found, in words
    age_s: float | None  #: seconds since it was asked
    took_s: float | None  #: seconds until it answered, or was given up
    interval_s: float


class Event(_Model):
    """A change, as the log has it."""

    number: int  #: 1 for the first of a daemon and those whose memory it goes on with
    time_s: float  #: Unix time
    level: Literal["info", "warning", "error", "critical"]
    event: str
    service: str = ""
    backend: str = ""
    cause: str = ""
    more: dict[str, str] = {}  #: everything else that the line says


class FlowStatus(_Model):
    """One open flow."""

    service: str
    source: str
    protocol: str  #: as in `listen`; empty: it is no single connection, but all that its source says
    source_port: int | None  #: of the connection, or an echo's identifier
    port: int | None  #: that it asks for
    backend: str
    address: str  #: of the backend
    left_s: int  #: until it is forgotten, unless a packet comes
    confirmed: bool | None  #: whether it had more than one packet; None: that cannot be told


class FlowsStatus(_Model):
    """Open flows, or the first of them."""

    total: int  #: how many there are
    flows: tuple[FlowStatus, ...]  #: at most as many as were asked for


class CandidateStatus(_Model):
    """A backend that may get a new flow."""

    name: str
    address: str
    weight: int  #: as configured
    effective_weight: int
    left_out: str  #: why it gets none; empty: it may get it


class Explanation(_Model):
    """What would become of a client's packet now, and why."""

    source: str
    vip: str
    protocol: str
    port: int | None
    service: str  #: empty: none answers it
    listener: str  #: of the service, "everything" if it has none
    flow: str  #: the name of the backend that the client's flow has; empty: it has no flow
    flow_left_s: int  #: until it is forgotten
    candidates: tuple[CandidateStatus, ...]
    backend: str  #: the name of where the packet goes; empty: nowhere
    address: str  #: of that backend
    backend_port: int | None  #: the port that it gets there, where that is another one; None: its own
    why: str  #: it goes there, or nowhere
    forwarding: str  #: who writes the addresses, as the configuration says it


class MoveStatus(_Model):
    """Flows that would go from one backend to another with their next packet."""

    backend: str
    address: str
    to_backend: str  #: empty: nowhere, as no backend gets new flows
    to_address: str
    flows: int


class SpreadStatus(_Model):
    """One backend as it is and as it would be; None: it is not there."""

    name: str
    address: str
    flows: int | None  #: open now
    flows_then: int | None  #: once those that would move have moved
    share: float | None  #: of new flows, 0 to 1
    share_then: float | None


class ServiceForecast(_Model):
    """What would change for one family of a service."""

    service: str
    family: Literal[4, 6]
    stays: bool  #: whether it is there now and then
    scheduler: str  #: then
    moves: tuple[MoveStatus, ...]
    ends: int  #: flows that nobody would answer any more
    homeless: int  #: flows that move anyway, as their backend is not usable
    exact: bool  #: whether each flow goes where `moves` says, whatever else comes and goes
    by_open_flows: bool  #: whether shares are of the next TRIED_FLOWS, if none ends
    elsewhere: float | None  #: the share of new clients that would get another backend; None: no hash says
    spread: tuple[SpreadStatus, ...]


class Forecast(_Model):
    """What would become of flows. Services for which nothing changes are left out."""

    moves: int  #: flows that would go to another backend with their next packet
    ends: int  #: flows that nobody would answer any more
    services: tuple[ServiceForecast, ...]


class WorkerStatus(_Model):
    """One worker and its queue."""

    number: int
    queue: int
    pid: int  #: 0: nobody at the moment
    core: int | None  #: None: not pinned
    restarts: int
    queue_waiting: int  #: packets that wait in the kernel's queue now
    queue_drops: int  #: packets that the kernel dropped because the queue was full
    socket_drops: int  #: packets that the kernel dropped because the socket's buffer was full
    over_share: int  #: packets that the worker dropped as more than their client's share
    counters: dict[str, int]  #: see WorkerCounter


class FlowTableStatus(_Model):
    """The flow table."""

    capacity: int  #: flows that it is sized for
    used: int  #: entries, as of the last sweep
    memory_bytes: int
    counters: dict[str, int]  #: see FlowTableCounter


class TrackedStatus(_Model):
    """The kernel's table of connections."""

    connections: int
    limit: int  #: 0: none
    percent: int  #: how full it is


class FastPathStatus(_Model):
    """Whether the kernel repeats what workers have decided."""

    mode: str  #: the setting fast_path
    interfaces: tuple[str, ...]  #: whose packets it sees; empty: workers see all
    why_not: str  #: why it does not see those of all that the configuration names; empty: it does
    not_redirected: dict[str, str]  #: why services go the way of "auto" although mode is "redirect", by name
    counters: dict[str, int]  #: by FastPathCounter name in lower case


class Status(_Model):
    """A whole daemon."""

    version: str
    uptime_s: float
    generation: int
    services: tuple[ServiceStatus, ...]
    workers: tuple[WorkerStatus, ...]
    flow_table: FlowTableStatus
    fast_path: FastPathStatus
    tracked: TrackedStatus | None  #: None: the kernel tracks no connections
    drifts_mended: int  #: how often something that others took away of the network set-up was put back
    counters_age_s: float  #: seconds since the counters that others than workers keep were last read
    counters_fault: str  #: why they could not be read the last time; empty: they could
    reasons: dict[str, int]  #: packets by Reason name in lower case, without ok


class Outcome(_Model):
    """What came of taking over another configuration, or would; each is a line for people."""

    mistakes: tuple[str, ...] = ()  #: then nothing was changed
    changes: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()  #: settings that keep their values until then
