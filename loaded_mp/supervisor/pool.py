"""Workers with a queue each, as many as the configuration asks for."""

from collections.abc import Mapping
from functools import partial

from loaded_mp import worker
from loaded_mp.config.model import Config
from loaded_mp.datapath.queue import Queue, QueueError
from loaded_mp.fastpath.loader import FastPath
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.memory.shared import SharedMemory, Stamp
from loaded_mp.services import queues_of, worker_count
from loaded_mp.supervisor.children import Children, StartError
from loaded_mp.supervisor.start import cores_of


class Pool:
    """The first of them have the first queues. Queues are bound here and inherited by workers."""

    def __init__(self, memory: SharedMemory, descriptor: int, config: Config, fast_path: FastPath) -> None:
        """`descriptor` is that of the memory."""
        self._fast_path = fast_path
        self._memory = memory
        self._descriptor = descriptor
        self._config = config  #: of the start
        self._queues: list[Queue] = []
        self.children = Children((), partial(worker.run, memory), self._heartbeat_s)

    def bind(self, config: Config, inherited: Mapping[int, int]) -> None:
        """Bind the queues that are missing; `inherited`: descriptors of those that are bound already.

        Raises QueueError.
        """
        for number in queues_of(config)[len(self._queues) :]:
            if number in inherited:
                self._queues.append(Queue.inherited(number, inherited[number]))
            else:
                self._queues.append(Queue(number, self._config.queue_length))
        if inherited or not _whole(config):
            self._take_whole(_whole(config))

    async def start(self, config: Config, taking_over: bool = False) -> None:
        """Start the workers that are missing. Raises StartError.

        `taking_over`: others served their queues before, and may have left packets undecided.
        """
        first = len(self.children.children)
        missing = self._queues[first:]
        if not missing:
            return
        places = [
            worker.Place(
                number,
                queue.number,
                queue.descriptor,
                self._descriptor,
                core,
                self._config.user,
                self._fast_path.links,
            )
            for number, (queue, core) in enumerate(zip(missing, cores_of(config)[first:], strict=True), first)
        ]
        self._memory.rows[0] = max(int(self._memory.rows[0]), len(self._queues))
        if not taking_over:  # another may have had this row, with another queue
            self._memory.stamps[first : len(self._queues)] = 0
        await self.children.join(places, taking_over)

    async def grow(self, config: Config) -> None:
        """Have the workers that a configuration asks for, before rules name their queues.

        Raises QueueError or StartError; then all is as it was.
        """
        before = len(self._queues)
        try:
            self.bind(config, {})
            await self.start(config)
        except (QueueError, StartError):
            await self._keep(before)
            raise

    async def shrink(self, config: Config) -> None:
        """Let go of more than a configuration asks for, when no rule names their queues any more."""
        await self._keep(worker_count(config))
        self._take_whole(_whole(config))

    def _take_whole(self, whole: bool) -> None:
        for queue in self._queues:
            queue.take_whole(whole)

    async def _keep(self, count: int) -> None:
        await self.children.leave(count)
        for queue in self._queues[count:]:
            queue.close()
        del self._queues[count:]

    def close(self) -> None:
        """Let go of all queues in this process."""
        for queue in self._queues:
            queue.close()

    def _heartbeat_s(self, number: int) -> float:
        return float(self._memory.stamps[number, Stamp.HEARTBEAT_MS]) / 1000


def _whole(config: Config) -> bool:
    """Whether packets may come as the kernel has joined them: not where one is put into another."""
    return not any(FORWARDINGS[service.forwarding].carries for service in config.services)
