"""Going through the flow table, piece by piece, so that nothing waits: one pass serves all visitors."""

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loaded_mp.flows.table import MAX_VALUE, FlowTable, count, expire, forget
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.shared import SharedMemory, open_flows
from loaded_mp.memory.snapshot import CLOSING, HOME, MAX_BACKENDS

#: Seldom enough that the workers, whose cores it may take for a moment, do not show it in their latency.
_INTERVAL_S = 5.0
#: Entries looked at in one go: less than a millisecond.
PIECE = 1 << 16

Longs = npt.NDArray[np.int64]


class Visitor(Protocol):
    """Somebody who looks at every entry of the table once in a pass."""

    def begin(self) -> None:
        """A pass begins."""

    def visit(self, start: int, stop: int) -> None:
        """Look at the entries start:stop."""

    def end(self) -> None:
        """The pass is over."""


class Sweeper:
    """Passes over the flow table."""

    def __init__(self, table: FlowTable, *visitors: Visitor) -> None:
        self._entries = table.words.size
        self._visitors = visitors

    async def run(self) -> None:
        """Pass again and again, until cancelled."""
        while True:
            await self._pass(self._visitors, _INTERVAL_S * PIECE / max(self._entries, PIECE))

    async def once(self, visitor: Visitor, piece: int = PIECE) -> None:
        """A pass of its own for a visitor, without pauses; `piece`: entries in one go."""
        await self._pass((visitor,), 0, piece)

    async def _pass(self, visitors: Iterable[Visitor], pause_s: float, piece: int = PIECE) -> None:
        for visitor in visitors:
            visitor.begin()
        for start in range(0, self._entries, piece):
            for visitor in visitors:
                visitor.visit(start, min(start + piece, self._entries))
            await asyncio.sleep(pause_s)
        for visitor in visitors:
            visitor.end()


class Expire:
    """Takes idle flows out."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._removed = np.zeros(MAX_VALUE + 1, np.int64)

    def begin(self) -> None:
        """Nothing is to be done."""

    def visit(self, start: int, stop: int) -> None:
        """Take out those whose deadline has passed."""
        if expire(self._memory.table, start, stop, int(time.monotonic()), self._removed):
            self._memory.active[-1] -= self._removed[:MAX_BACKENDS]
            self._removed[:] = 0

    def end(self) -> None:
        """Nothing is to be done."""


class Count:
    """Counts flows; where the counts of open flows are off, as after a process died, it sets them right."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self.counts = np.zeros(MAX_VALUE + 1, np.int64)  #: of the last pass: entries by the value they hold
        self.used = 0  #: of the last pass: entries

    def begin(self) -> None:
        """Count from 0."""
        self._counts, self._used = np.zeros_like(self.counts), 0
        self._open, self._new = self._open_flows(), self._new_flows()

    def visit(self, start: int, stop: int) -> None:
        """Count those that are there."""
        self._used += count(self._memory.table, start, stop, self._counts)

    def end(self) -> None:
        """Show what was counted."""
        self.counts, self.used = self._counts, self._used
        new = self._new_flows() - self._new
        self._memory.active[-1] += drift(self._open, self._open_flows(), new, self.counts[:MAX_BACKENDS])

    def _open_flows(self) -> Longs:
        return open_flows(self._memory)

    def _new_flows(self) -> Longs:
        counted = self._memory.backends[: self._memory.rows[0], :, BackendCounter.NEW_FLOWS]
        new: Longs = counted.sum(axis=0).astype(np.int64)
        return new


class Forget:
    """Takes out the flows that hold one of some values; nobody may enter such a flow meanwhile."""

    def __init__(self, table: FlowTable, values: Iterable[int]) -> None:
        self._table = table
        self._forgotten = np.zeros(MAX_VALUE + 1, np.bool_)
        self._forgotten[list(values)] = True
        for added in (CLOSING, HOME):
            self._forgotten[added : added + MAX_BACKENDS] = self._forgotten[:MAX_BACKENDS]

    def begin(self) -> None:
        """Nothing is to be done."""

    def visit(self, start: int, stop: int) -> None:
        """Take out those with one of the values."""
        forget(self._table, start, stop, self._forgotten)

    def end(self) -> None:
        """Nothing is to be done."""


def drift(before: Longs, after: Longs, new: Longs, counted: Longs) -> Longs:
    """By how much counts of open flows are off, where that is more than what came and went during a pass.

    All are int64[n] by backend: open flows before and after the pass, new ones in it, entries that it saw.
    """
    came_and_went = np.maximum(2 * new + before - after, 0)
    off = counted - after
    return np.where(np.abs(off) > came_and_went, off, 0)
