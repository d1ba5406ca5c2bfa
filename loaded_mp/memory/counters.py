"""What is counted in shared memory: one line a counter, which status and metrics go through."""

from enum import IntEnum
from typing import Self

#: Bytes that processes on different cores cannot write at the same time without waiting for each other.
CACHE_LINE = 64


class Counter(IntEnum):
    """The column of a counter, and what it counts for people."""

    help: str

    def __new__(cls, column: int, text: str) -> Self:
        """Members are written as NAME = column, text."""
        member = int.__new__(cls, column)
        member._value_ = column
        member.help = text
        return member


class BackendCounter(Counter):
    """Of each backend; bytes are those of IP packets with their headers."""

    TO_BACKEND_PACKETS = 0, "Packets to the backend."
    TO_BACKEND_BYTES = 1, "Bytes of IP packets to the backend."
    TO_CLIENT_PACKETS = 2, "Packets from the backend to clients."
    TO_CLIENT_BYTES = 3, "Bytes of IP packets from the backend to clients."
    NEW_FLOWS = 4, "Flows that were given to the backend."
    CONNECTIONS = 5, "TCP connections that clients began with the backend, repeated attempts included."
    REFUSALS = 6, "TCP connections that the backend refused."
    ERRORS = 7, "ICMP errors about packets to the backend."
    RESETS = 8, "TCP connections that the backend reset after it had accepted them."
    WORDS = 9, "Packets from the backend that say something: all but TCP segments without data and FIN."


#: What requests alone show.
OF_REQUESTS = (
    BackendCounter.TO_BACKEND_PACKETS,
    BackendCounter.TO_BACKEND_BYTES,
    BackendCounter.NEW_FLOWS,
    BackendCounter.CONNECTIONS,
)


class WorkerCounter(Counter):
    """Of each worker."""

    PACKETS = 0, "Packets that the worker decided."
    BATCHES = 1, "Reads that brought packets."
    RECEIVE_OVERRUNS = 2, "Reads that ended with ENOBUFS."
    UNSENT_VERDICTS = 3, "Verdicts that the kernel did not take; must stay zero."


class FlowTableCounter(Counter):
    """Of the flow table, counted by each worker for itself."""

    EVICTIONS = 0, "Flows that gave way to others because their bucket was full."


class FastPathCounter(Counter):
    """Packets that the fast path saw, on each core. What it does not forward goes on as it came."""

    FOREIGN = 0, "Packets that are neither for a service nor from a backend."
    TO_BACKEND = 1, "Requests that the fast path gave to backends."
    TO_CLIENT = 2, "Replies that the fast path gave to clients."
    NOT_PLAIN = 3, "Packets that the fast path does not read: fragments, options, few hops, other protocols."
    NO_FLOW = 4, "Packets for a service or from a backend of which no flow was known."
    FOR_WORKERS = 5, "Packets for a service or from a backend of which only a worker knows what to do."
    UNCHANGED = 6, "Requests that the kernel did not let the fast path change."
    GONE = 7, "Replies that were dropped as their backend or VIP was taken away at that moment."
    REDIRECTED = 8, "Packets to backends and to clients that went past FORWARD rules and conntrack."


def columns(counters: type[IntEnum]) -> int:
    """uint64 columns of a row that counts `counters`, so that each row has its cache lines to itself."""
    line = CACHE_LINE // 8
    return -(-len(counters) // line) * line
