"""How full the kernel's table of connections is."""

from pathlib import Path
from typing import NamedTuple

#: From this share on a table is called full, in percent.
FULL_PERCENT = 80


class Tracked(NamedTuple):
    """Connections that the kernel tracks in this network namespace."""

    connections: int
    limit: int  #: while so many are there, packets that begin another one are dropped; 0: none

    @property
    def percent(self) -> int:
        """How full the table is."""
        return 100 * self.connections // self.limit if self.limit else 0


def read_tracked(proc: Path = Path("/proc")) -> Tracked | None:
    """How many connections are tracked now; None before the first rule that needs it."""
    folder = proc / "sys/net/netfilter"
    try:
        count = (folder / "nf_conntrack_count").read_text()
        limit = (folder / "nf_conntrack_max").read_text()
    except OSError:
        return None
    return Tracked(int(count), int(limit))


def more_room(tracked: Tracked) -> str:
    """The command that gives the table room for four times as many."""
    return f"sysctl -w net.netfilter.nf_conntrack_max={tracked.limit * 4}"
