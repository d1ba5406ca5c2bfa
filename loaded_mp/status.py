"""What a running daemon can say about itself: for /metrics, the control socket and the demo's screen.

Counters only ever rise while the daemon runs, also over the death of a worker.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BackendStatus:
    """One backend of one service. Bytes count IP packets with their headers."""

    name: str
    address: str
    weight: int
    effective_weight: int  #: 0 while it is down
    up: bool
    flows: int  #: entries of the flow table, as of the last sweep
    new_flows: int
    to_backend_packets: int
    to_backend_bytes: int
    to_client_packets: int
    to_client_bytes: int


@dataclass(frozen=True)
class ServiceStatus:
    """One service with its backends."""

    name: str
    vips: tuple[str, ...]
    listen: tuple[str, ...]  #: as in the configuration; empty: everything
    scheduler: str
    backends: tuple[BackendStatus, ...]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker and its queue."""

    number: int
    queue: int
    pid: int
    core: int | None  #: None: not pinned
    packets: int
    batches: int
    receive_overruns: int  #: reads that ended with ENOBUFS
    queue_waiting: int  #: packets that wait in the kernel's queue now
    queue_drops: int  #: packets that the kernel dropped because the queue was full
    socket_drops: int  #: packets that the kernel dropped because the socket's buffer was full
    restarts: int


@dataclass(frozen=True)
class FlowTableStatus:
    """The flow table."""

    capacity: int  #: flows that it is sized for
    used: int  #: entries, as of the last sweep
    evictions: int  #: flows that gave way to others because their bucket was full
    memory_bytes: int


@dataclass(frozen=True)
class Status:
    """A whole daemon."""

    version: str
    uptime_s: float
    generation: int
    services: tuple[ServiceStatus, ...]
    workers: tuple[WorkerStatus, ...]
    flow_table: FlowTableStatus
    reasons: dict[str, int] = field(default_factory=dict)  #: packets by Reason name in lower case, without ok
