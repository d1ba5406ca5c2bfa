"""Publishing snapshots: write the buffer that nobody reads, then raise the generation."""

import asyncio
from collections.abc import Callable

import numpy as np

from loaded_mp.flows.atomics import add
from loaded_mp.memory.shared import SharedMemory, Stamp
from loaded_mp.memory.snapshot import Snapshot

_POLL_S = 0.01


class Publisher:
    """The only writer of the snapshots."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._lock = asyncio.Lock()

    @property
    def generation(self) -> int:
        """The generation that holds."""
        return int(self._memory.generation[0])

    async def publish(self, fill: Callable[[Snapshot], None]) -> None:
        """Let `fill` write the idle buffer, then make it hold. What `fill` raises changes nothing."""
        async with self._lock:
            await self.stamped()
            fill(self._memory.snapshots[(self.generation + 1) & 1])
            add(self._memory.generation, 0, np.uint64(1))

    async def stamped(self) -> None:
        """Wait until every worker uses the generation that holds.

        A worker that hangs is replaced after a while, and its replacement stamps: so this ends.
        """
        while self.generation > 1 and self._memory.stamps[:, Stamp.GENERATION].min() < self.generation:
            await asyncio.sleep(_POLL_S)
