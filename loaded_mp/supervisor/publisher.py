"""Publishing snapshots: write the buffer that nobody reads, then raise the generation."""

import asyncio
from collections.abc import Callable, Collection

import numpy as np

from loaded_mp.flows.atomics import add
from loaded_mp.memory.shared import SharedMemory, Stamp
from loaded_mp.memory.snapshot import Snapshot
from loaded_mp.supervisor.aside import aside

#: A worker that does not stamp for so long hangs.
STAMP_TIMEOUT_S = 2.0
_POLL_S = 0.01


class Publisher:
    """The only writer of the snapshots."""

    def __init__(
        self,
        memory: SharedMemory,
        running: Callable[[], Collection[int]],
        grace: Callable[[], None] | None = None,
    ) -> None:
        """`running` says which workers have a process: the others read nothing, and stamp nothing.

        `grace` waits until programs in the kernel that have begun to read are done; they stamp nothing.
        """
        self._grace = grace
        self._memory = memory
        self._running = running
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
        """Wait until every worker that runs, and every program, uses the generation that holds.

        A worker that hangs is replaced after a while, and its replacement stamps: so this ends.
        """
        while any(self._memory.stamps[n, Stamp.GENERATION] < self.generation for n in self._running()):
            await asyncio.sleep(_POLL_S)
        if self._grace:
            await aside(self._grace)
