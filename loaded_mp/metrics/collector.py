"""One collector: a daemon's Status as Prometheus metric families."""

import time
from collections.abc import Callable, Iterable
from ipaddress import ip_network

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loaded_mp.fields import Endpoint
from loaded_mp.memory.counters import (
    BackendCounter,
    Counter,
    FastPathCounter,
    FlowTableCounter,
    WorkerCounter,
)
from loaded_mp.status import (
    BackendStatus,
    FastPathStatus,
    FlowTableStatus,
    Status,
    TrackedStatus,
    WorkerStatus,
)

_BACKEND = ("service", "backend", "address")
_WORKER = ("worker", "queue")
#: A backend's counters whose names begin with one of these are one family, told apart by a label.
_DIRECTIONS = ("to_backend", "to_client")


class StatusCollector(Collector):
    """Reads the status once for each scrape."""

    def __init__(self, read: Callable[[], Status]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """All metric families of the daemon."""
        status = self._read()
        build = GaugeMetricFamily("loaded_mp_build_info", "The running version.", labels=["version"])
        build.add_metric([status.version], 1)
        yield build
        yield GaugeMetricFamily("loaded_mp_uptime_seconds", "Time since the start.", status.uptime_s)
        yield GaugeMetricFamily(
            "loaded_mp_snapshot_generation", "Number of the snapshot that workers read.", status.generation
        )
        yield CounterMetricFamily(
            "loaded_mp_drifts_mended",
            "Times that something others took away of the network set-up was put back.",
            status.drifts_mended,
        )
        yield GaugeMetricFamily(
            "loaded_mp_counters_age_seconds",
            "Time since the counters that the kernel's rules keep were last read.",
            status.counters_age_s,
        )
        backends = [
            ([service.name, backend.name, backend.address], backend)
            for service in status.services
            for backend in service.backends
        ]
        yield _serving(status)
        yield _failing(status)
        yield from _backends(backends)
        yield from _workers([([str(each.number), str(each.queue)], each) for each in status.workers])
        yield from _flow_table(status.flow_table)
        yield from _fast_path(status.fast_path)
        if status.tracked:
            yield from _tracked(status.tracked)
        reasons = CounterMetricFamily(
            "loaded_mp_unbalanced_packets", "Packets that were not balanced, by reason.", labels=["reason"]
        )
        for reason, count in status.reasons.items():
            reasons.add_metric([reason], count)
        yield reasons


def _serving(status: Status) -> Metric:
    serving = GaugeMetricFamily(
        "loaded_mp_service_backends_serving",
        "Backends that new flows are given to; 0: the service has no backend.",
        labels=("service", "family"),
    )
    for service in status.services:
        families = {ip_network(vip).version for vip in service.vips}
        for family in sorted(families):
            weights = [
                each.up and each.effective_weight
                for each in service.backends
                if Endpoint.read(each.address).version == family
            ]
            serving.add_metric([service.name, f"IPv{family}"], sum(map(bool, weights)))
    return serving


def _failing(status: Status) -> Metric:
    failing = GaugeMetricFamily(
        "loaded_mp_scheduler_failing",
        "1 if the operator's own scheduler of a service gives no slots; those that it gave before stay.",
        labels=("service",),
    )
    for service in status.services:
        if service.scheduler.startswith("/"):
            failing.add_metric([service.name], bool(service.scheduler_fault))
    return failing


def _backends(backends: list[tuple[list[str], BackendStatus]]) -> Iterable[Metric]:
    up = GaugeMetricFamily("loaded_mp_backend_up", "1 if the backend is up.", labels=_BACKEND)
    weight = GaugeMetricFamily("loaded_mp_backend_weight", "Configured weight.", labels=_BACKEND)
    effective = GaugeMetricFamily(
        "loaded_mp_backend_effective_weight", "Weight that new flows are spread by now.", labels=_BACKEND
    )
    flows = GaugeMetricFamily(
        "loaded_mp_backend_flows", "Flows of the backend at the last sweep.", labels=_BACKEND
    )
    full = GaugeMetricFamily(
        "loaded_mp_backend_full",
        "1 if the backend gets no new flows because it has as many as it may have.",
        labels=_BACKEND,
    )
    certificate = GaugeMetricFamily(
        "loaded_mp_backend_certificate_days",
        "Days until a certificate of the backend expires, of those that checks see.",
        labels=_BACKEND,
    )
    for labels, backend in backends:
        if backend.certificate_expires_s is not None:
            certificate.add_metric(labels, (backend.certificate_expires_s - time.time()) / 86_400)
        up.add_metric(labels, backend.up)
        weight.add_metric(labels, backend.weight)
        effective.add_metric(labels, backend.effective_weight)
        flows.add_metric(labels, backend.flows)
        if backend.most_flows:
            full.add_metric(labels, backend.full)
    counted: dict[str, CounterMetricFamily] = {}
    for counter in BackendCounter:
        direction, name = _direction(counter)
        names = (*_BACKEND, "direction") if direction else _BACKEND
        family = counted.setdefault(name, CounterMetricFamily(f"loaded_mp_backend_{name}", "", labels=names))
        family.documentation = f"{family.documentation} {counter.help}".strip()
        for labels, backend in backends:
            if (value := backend.counters.get(counter.name.lower())) is not None:
                family.add_metric([*labels, *direction], value)
    return up, weight, effective, flows, full, certificate, *counted.values()


def _direction(counter: Counter) -> tuple[list[str], str]:
    """The value of the label `direction`, if there is one, and the rest of the counter's name."""
    name = counter.name.lower()
    for direction in _DIRECTIONS:
        if name.startswith(f"{direction}_"):
            return [direction], name.removeprefix(f"{direction}_")
    return [], name


def _workers(workers: list[tuple[list[str], WorkerStatus]]) -> Iterable[Metric]:
    for counter in WorkerCounter:
        name = counter.name.lower()
        family = CounterMetricFamily(f"loaded_mp_worker_{name}", counter.help, labels=_WORKER)
        for labels, worker in workers:
            family.add_metric(labels, worker.counters[name])
        yield family
    waiting = GaugeMetricFamily(
        "loaded_mp_worker_queue_waiting", "Packets that wait in the kernel's queue.", labels=_WORKER
    )
    queue_drops = CounterMetricFamily(
        "loaded_mp_worker_queue_drops",
        "Packets that the kernel dropped because the queue was full.",
        labels=_WORKER,
    )
    socket_drops = CounterMetricFamily(
        "loaded_mp_worker_socket_drops",
        "Packets that the kernel dropped because the socket's buffer was full.",
        labels=_WORKER,
    )
    over_share = CounterMetricFamily(
        "loaded_mp_worker_over_share",
        "Packets that the worker dropped as more than their client's share while others waited.",
        labels=_WORKER,
    )
    restarts = CounterMetricFamily(
        "loaded_mp_worker_restarts", "Times that the worker was replaced.", labels=_WORKER
    )
    for labels, worker in workers:
        waiting.add_metric(labels, worker.queue_waiting)
        queue_drops.add_metric(labels, worker.queue_drops)
        socket_drops.add_metric(labels, worker.socket_drops)
        over_share.add_metric(labels, worker.over_share)
        restarts.add_metric(labels, worker.restarts)
    yield from (waiting, queue_drops, socket_drops, over_share, restarts)


def _flow_table(table: FlowTableStatus) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "loaded_mp_flow_table_capacity", "Flows that the table is sized for.", table.capacity
    )
    yield GaugeMetricFamily("loaded_mp_flow_table_used", "Entries in use at the last sweep.", table.used)
    yield GaugeMetricFamily(
        "loaded_mp_shared_memory_bytes", "Memory that processes share.", table.memory_bytes
    )
    for counter in FlowTableCounter:
        name = counter.name.lower()
        yield CounterMetricFamily(f"loaded_mp_flow_table_{name}", counter.help, table.counters[name])


def _fast_path(fast_path: FastPathStatus) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "loaded_mp_fast_path_interfaces",
        "Interfaces on which the kernel repeats what workers have decided.",
        len(fast_path.interfaces),
    )
    for counter in FastPathCounter:
        name = counter.name.lower()
        yield CounterMetricFamily(f"loaded_mp_fast_path_{name}", counter.help, fast_path.counters[name])


def _tracked(tracked: TrackedStatus) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "loaded_mp_tracked_connections", "Connections that the kernel tracks.", tracked.connections
    )
    yield GaugeMetricFamily(
        "loaded_mp_tracked_connections_limit",
        "So many connections the kernel tracks at the most; 0: any number.",
        tracked.limit,
    )
