"""What the kernel says of netfilter queues."""

from pathlib import Path
from typing import NamedTuple


class QueueStatus(NamedTuple):
    """One queue, as net/netfilter/nfnetlink_queue.c (seq_show) prints it."""

    port: int  #: of the socket that has bound it: mostly a process id, negative if several are one process's
    waiting: int  #: packets that wait for a verdict
    queue_drops: int  #: packets dropped because the queue was full
    socket_drops: int  #: packets dropped because the socket's buffer was full


def read_queues(proc: Path = Path("/proc")) -> dict[int, QueueStatus]:
    """All bound queues of this network namespace by number; empty where the kernel has no NFQUEUE."""
    try:
        lines = (proc / "net/netfilter/nfnetlink_queue").read_text().splitlines()
    except OSError:
        return {}
    rows = [[int(field) for field in line.split()] for line in lines]
    return {row[0]: QueueStatus(row[1], row[2], row[5], row[6]) for row in rows}
