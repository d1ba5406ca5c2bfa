"""What the daemon says of itself, read from shared memory."""

import time

import loaded_mp
from loaded_mp.config.model import Config
from loaded_mp.memory.shared import (
    BATCHES,
    EVICTIONS,
    NEW_FLOWS,
    OVERRUNS,
    PACKETS,
    TO_BACKEND_BYTES,
    TO_BACKEND_PACKETS,
    TO_CLIENT_BYTES,
    TO_CLIENT_PACKETS,
    SharedMemory,
    memory_bytes,
)
from loaded_mp.metrics.queues import QueueStatus, read_queues
from loaded_mp.network.conntrack import Counted
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import BackendStatus, FlowTableStatus, ServiceStatus, Status, WorkerStatus
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.children import Child, Children
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.snapshots import Part
from loaded_mp.supervisor.sweep import Sweeper


class Report:
    """Reads the daemon's state when asked."""

    def __init__(
        self,
        memory: SharedMemory,
        backends: Backends,
        children: Children,
        sweeper: Sweeper,
        publisher: Publisher,
        accounting: Accounting,
    ) -> None:
        self._memory = memory
        self._backends = backends
        self._children = children
        self._sweeper = sweeper
        self._publisher = publisher
        self._accounting = accounting
        self._started_s = time.monotonic()

    def status(self, config: Config) -> Status:
        """All of it at this moment, of a daemon that runs `config`."""
        queues = read_queues()
        forwarded = self._accounting.read(self._backends.parts)
        reasons = self._memory.reasons.sum(axis=0)
        workers = len(self._children.children)
        return Status(
            version=loaded_mp.__version__,
            uptime_s=time.monotonic() - self._started_s,
            generation=self._publisher.generation,
            services=tuple(
                ServiceStatus(
                    name=service.name,
                    vips=tuple(str(vip.ip) for vip in service.vips),
                    listen=tuple(str(listener) for listener in service.listen),
                    scheduler=service.scheduler,
                    backends=tuple(
                        self._backend(part, number, forwarded.get(number, Counted()))
                        for part in self._backends.parts
                        if part.service.name == service.name
                        for number in part.backends
                    ),
                )
                for service in config.services
            ),
            workers=tuple(
                self._worker(child, queues.get(child.queue.number)) for child in self._children.children
            ),
            flow_table=FlowTableStatus(
                capacity=config.flows,
                used=self._sweeper.used,
                evictions=int(self._memory.workers[:, EVICTIONS].sum()),
                memory_bytes=memory_bytes(config.flows, workers),
            ),
            reasons={r.name.lower(): int(reasons[r]) for r in Reason if r is not Reason.OK},
        )

    def _backend(self, part: Part, number: int, forwarded: Counted) -> BackendStatus:
        backend = part.backends[number]
        traffic = self._memory.traffic[:, number].sum(axis=0)
        return BackendStatus(
            name=backend.name or str(backend.address),
            address=str(backend.address),
            weight=backend.weight,
            effective_weight=self._backends.effective_weight(part, number),
            up=bool(self._backends.up[number]),
            flows=int(self._sweeper.counts[number]),
            new_flows=int(traffic[NEW_FLOWS]),
            to_backend_packets=int(traffic[TO_BACKEND_PACKETS]) + forwarded.to_backend_packets,
            to_backend_bytes=int(traffic[TO_BACKEND_BYTES]) + forwarded.to_backend_bytes,
            to_client_packets=int(traffic[TO_CLIENT_PACKETS]) + forwarded.to_client_packets,
            to_client_bytes=int(traffic[TO_CLIENT_BYTES]) + forwarded.to_client_bytes,
        )

    def _worker(self, child: Child, queue: QueueStatus | None) -> WorkerStatus:
        row = self._memory.workers[child.number]
        return WorkerStatus(
            number=child.number,
            queue=child.queue.number,
            pid=child.pid,
            core=child.core,
            packets=int(row[PACKETS]),
            batches=int(row[BATCHES]),
            receive_overruns=int(row[OVERRUNS]),
            queue_waiting=queue.waiting if queue else 0,
            queue_drops=queue.queue_drops if queue else 0,
            socket_drops=queue.socket_drops if queue else 0,
            restarts=child.restarts,
        )
