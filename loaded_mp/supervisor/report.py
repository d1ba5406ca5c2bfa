"""What the daemon says of itself, read from shared memory."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

import loaded_mp
from loaded_mp.fastpath.loader import FastPath
from loaded_mp.fields import vip_name
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Counted
from loaded_mp.memory.counters import BackendCounter, FastPathCounter, FlowTableCounter, WorkerCounter
from loaded_mp.memory.shared import SharedMemory, counted_of, memory_bytes
from loaded_mp.network.queues import QueueStatus, read_queues
from loaded_mp.network.tracking import read_tracked
from loaded_mp.packet.reasons import Reason
from loaded_mp.plan import not_redirected
from loaded_mp.services import Part
from loaded_mp.status import (
    BackendStatus,
    FastPathStatus,
    FlowTableStatus,
    ServiceStatus,
    Status,
    TrackedStatus,
    WorkerStatus,
)
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.children import Child, Children
from loaded_mp.supervisor.drift import Drift
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.rates import Rates
from loaded_mp.supervisor.sweep import Count


@dataclass(frozen=True)
class Report:
    """Reads the daemon's state when asked."""

    memory: SharedMemory
    backends: Backends
    children: Children
    flows: Count
    publisher: Publisher
    accounting: Accounting
    drift: Drift
    rates: Rates
    fast_path: FastPath
    started_s: float = field(default_factory=time.monotonic)

    def status(self, service: str | None) -> Status:
        """All of it at this moment; of the services one, None: each."""
        queues = read_queues()
        services = self.backends.services
        counted = self.accounting.counted
        reasons = _counts(Reason, self.memory.reasons.sum(axis=0))
        del reasons["ok"]
        return Status(
            version=loaded_mp.__version__,
            uptime_s=time.monotonic() - self.started_s,
            generation=self.publisher.generation,
            services=tuple(
                self._service(parts, counted, services.part_of)
                for name, parts in services.by_name.items()
                if service in (None, name)
            ),
            workers=tuple(
                self._worker(child, queues.get(child.place.queue)) for child in self.children.children
            ),
            flow_table=FlowTableStatus(
                capacity=services.config.flows,
                used=self.flows.used,
                memory_bytes=memory_bytes(services.config.flows, len(self.children.children)),
                counters=_counts(FlowTableCounter, self.memory.flow_table.sum(axis=0)),
            ),
            fast_path=FastPathStatus(
                mode=self.fast_path.mode,
                interfaces=self.fast_path.interfaces,
                why_not=self.fast_path.why_not,
                not_redirected=not_redirected(services),
                counters=_counts(FastPathCounter, self.memory.kernel_counted.sum(axis=0)),
            ),
            tracked=_tracked(),
            drifts_mended=self.drift.mends,
            counters_age_s=self.accounting.age_s,
            counters_fault=self.accounting.fault,
            reasons=reasons,
        )

    def services(self, numbers: Collection[int]) -> list[ServiceStatus]:
        """The services of these backend ids, with no others."""
        counted = self.accounting.counted
        return [
            self._service(parts, counted, numbers)
            for parts in self.backends.services.by_name.values()
            if any(number in part.backends for part in parts for number in numbers)
        ]

    def _service(
        self, parts: tuple[Part, ...], forwarded: Mapping[int, Counted], wanted: Collection[int]
    ) -> ServiceStatus:
        service = parts[0].service
        return ServiceStatus(
            name=service.name,
            vips=tuple(map(vip_name, service.vips)),
            listen=tuple(str(listener) for listener in service.listen),
            scheduler=service.scheduler,
            scheduler_fault=next(
                filter(None, (self.backends.scheduler_faults.get(part.id) for part in parts)), ""
            ),
            forwarding=service.forwarding,
            affinity=str(service.affinity),
            checks=tuple(str(check) for check in service.checks),
            checks_needed=service.checks_needed,
            backends=tuple(
                self._backend(part, number, forwarded.get(number, {}))
                for part in parts
                for number in part.backends
                if number in wanted
            ),
        )

    def _backend(self, part: Part, number: int, forwarded: Counted) -> BackendStatus:
        backend, state = part.backends[number], self.backends.states[number]
        counters = FORWARDINGS[part.service.forwarding].counters
        return BackendStatus(
            name=backend.name or str(backend.address),
            address=str(backend.address),
            weight=backend.weight,
            weight_wanted=state.weight,
            effective_weight=state.effective_weight(backend.weight),
            backup=backend.backup,
            up=state.up,
            wanted=state.wanted,
            since_s=time.monotonic() - state.since_s,
            cause=state.why,
            certificate_expires_s=state.certificate_expires_s,
            flows=self.backends.flows(number),
            most_flows=backend.most_flows,
            full=bool(self.backends.full(number)),
            counters=_counts(counters, counted_of(self.memory, number), forwarded),
            rates=self.rates.of(number, counters),
        )

    def _worker(self, child: Child, queue: QueueStatus | None) -> WorkerStatus:
        return WorkerStatus(
            number=child.place.number,
            queue=child.place.queue,
            pid=child.pid,
            core=child.place.core,
            restarts=child.restarts,
            queue_waiting=queue.waiting if queue else 0,
            queue_drops=queue.queue_drops if queue else 0,
            socket_drops=queue.socket_drops if queue else 0,
            over_share=int(self.memory.reasons[child.place.number, Reason.OVER_SHARE]),
            counters=_counts(WorkerCounter, self.memory.workers[child.place.number]),
        )


def _tracked() -> TrackedStatus | None:
    tracked = read_tracked()
    return TrackedStatus(**tracked._asdict(), percent=tracked.percent) if tracked else None


def _counts(
    counters: Iterable[IntEnum], row: npt.NDArray[np.uint64], more: Mapping[BackendCounter, int] | None = None
) -> dict[str, int]:
    """What a row counts, by the lower-case names of its columns, with what others counted of the same."""
    others = {each.name: value for each, value in (more or {}).items()}
    return {each.name.lower(): int(row[each]) + others.get(each.name, 0) for each in counters}
