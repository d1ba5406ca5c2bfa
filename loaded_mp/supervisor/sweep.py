"""Going through the flow table: idle flows out, the others counted; piece by piece, so that nothing waits."""

import asyncio
import time

import numpy as np

from loaded_mp.flows.table import MAX_VALUE, FlowTable, expire, forget

#: Seldom enough that the workers, whose cores it may take for a moment, do not show it in their latency.
_INTERVAL_S = 5.0
#: Entries looked at in one go: less than a millisecond.
PIECE = 1 << 16


class Sweeper:
    """Counts are those of the last complete sweep."""

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self.counts = np.zeros(MAX_VALUE + 1, np.int64)  #: entries by the value they hold
        self.used = 0  #: entries in use

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            counts = np.zeros_like(self.counts)
            used = 0
            entries = self._table.words.size
            pause_s = _INTERVAL_S * PIECE / max(entries, PIECE)
            for start in range(0, entries, PIECE):
                stop = min(start + PIECE, entries)
                used += expire(self._table, start, stop, int(time.monotonic()), counts)[1]
                await asyncio.sleep(pause_s)
            self.counts, self.used = counts, used

    async def forget(self, value: int) -> None:
        """Remove every entry that holds `value`; nobody may enter it again meanwhile."""
        for start in range(0, self._table.words.size, PIECE):
            forget(self._table, start, min(start + PIECE, self._table.words.size), value)
            await asyncio.sleep(0)
