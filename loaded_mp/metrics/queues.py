"""What the kernel says of netfilter queues."""

from pathlib import Path
from typing import NamedTuple

_PATH = Path("/proc/net/netfilter/nfnetlink_queue")


class QueueStatus(NamedTuple):
    """One queue, as net/netfilter/nfnetlink_queue.c (seq_show) prints it."""

    waiting: int  #: packets that wait for a verdict
    queue_drops: int  #: packets dropped because the queue was full
    socket_drops: int  #: packets dropped because the socket's buffer was full


def read_queues() -> dict[int, QueueStatus]:
    """All bound queues of this network namespace by number; empty where the kernel has no NFQUEUE."""
    try:
        lines = _PATH.read_text().splitlines()
    except FileNotFoundError:
        return {}
    rows = [[int(field) for field in line.split()] for line in lines]
    return {row[0]: QueueStatus(row[2], row[5], row[6]) for row in rows}
