"""The kernel's table of connections is watched: a full one keeps new connections away."""

import asyncio
import logging

from loaded_mp.log import event
from loaded_mp.network.tracking import FULL_PERCENT, Tracked, more_room, read_tracked

log = logging.getLogger(__name__)

_PERIOD_S = 1.0
#: Below this share it is over, in percent: not said again and again by a table about as full as it may be.
_OVER_PERCENT = 70


class Tracking:
    """Says once that the table fills, and once that it is over."""

    def __init__(self) -> None:
        self._full = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self.heard(read_tracked())
            await asyncio.sleep(_PERIOD_S)

    def heard(self, tracked: Tracked | None) -> None:
        """Take note of how full the table is; None: there is none yet."""
        if tracked is None:
            return
        figures = {"tracked": tracked.connections, "limit": tracked.limit}
        if not self._full and tracked.percent >= FULL_PERCENT:
            self._full = True
            log.warning(
                event(
                    "conntrack-full",
                    **figures,
                    effect="at the limit the kernel drops packets that begin a connection, unless it finds"
                    " an unanswered one that gives way",
                    todo=f"{more_room(tracked)}, or shorter net.netfilter.nf_conntrack_*_timeout_*",
                )
            )
        elif self._full and tracked.percent < _OVER_PERCENT:
            self._full = False
            log.info(event("conntrack-not-full", **figures))
