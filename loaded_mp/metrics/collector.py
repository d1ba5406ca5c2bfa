"""One collector: a daemon's Status as Prometheus metric families."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loaded_mp.status import Status

_BACKEND = ("service", "backend", "address")
_WORKER = ("worker", "queue")


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
        yield from _backends(status)
        yield from _workers(status)
        yield from _flow_table(status)
        reasons = CounterMetricFamily(
            "loaded_mp_unbalanced_packets", "Packets that were not balanced, by reason.", labels=["reason"]
        )
        for reason, count in status.reasons.items():
            reasons.add_metric([reason], count)
        yield reasons


def _backends(status: Status) -> Iterable[Metric]:
    up = GaugeMetricFamily("loaded_mp_backend_up", "1 if the backend is up.", labels=_BACKEND)
    weight = GaugeMetricFamily("loaded_mp_backend_weight", "Configured weight.", labels=_BACKEND)
    effective = GaugeMetricFamily(
        "loaded_mp_backend_effective_weight", "Weight that new flows are spread by now.", labels=_BACKEND
    )
    flows = GaugeMetricFamily(
        "loaded_mp_backend_flows", "Flows of the backend at the last sweep.", labels=_BACKEND
    )
    new_flows = CounterMetricFamily(
        "loaded_mp_backend_new_flows", "Flows that were given to the backend.", labels=_BACKEND
    )
    packets = CounterMetricFamily(
        "loaded_mp_backend_packets", "Packets by direction.", labels=[*_BACKEND, "direction"]
    )
    octets = CounterMetricFamily(
        "loaded_mp_backend_bytes", "Bytes of IP packets by direction.", labels=[*_BACKEND, "direction"]
    )
    for service in status.services:
        for backend in service.backends:
            labels = [service.name, backend.name, backend.address]
            up.add_metric(labels, backend.up)
            weight.add_metric(labels, backend.weight)
            effective.add_metric(labels, backend.effective_weight)
            flows.add_metric(labels, backend.flows)
            new_flows.add_metric(labels, backend.new_flows)
            packets.add_metric([*labels, "to_backend"], backend.to_backend_packets)
            packets.add_metric([*labels, "to_client"], backend.to_client_packets)
            octets.add_metric([*labels, "to_backend"], backend.to_backend_bytes)
            octets.add_metric([*labels, "to_client"], backend.to_client_bytes)
    return up, weight, effective, flows, new_flows, packets, octets


def _workers(status: Status) -> Iterable[Metric]:
    counters = {
        "packets": "Packets that the worker decided.",
        "batches": "Reads that brought packets.",
        "receive_overruns": "Reads that ended with ENOBUFS.",
        "queue_drops": "Packets that the kernel dropped because the queue was full.",
        "socket_drops": "Packets that the kernel dropped because the socket's buffer was full.",
        "restarts": "Times that the worker was replaced.",
    }
    for name, text in counters.items():
        family = CounterMetricFamily(f"loaded_mp_worker_{name}", text, labels=_WORKER)
        for worker in status.workers:
            family.add_metric([str(worker.number), str(worker.queue)], getattr(worker, name))
        yield family
    waiting = GaugeMetricFamily(
        "loaded_mp_worker_queue_waiting", "Packets that wait in the kernel's queue.", labels=_WORKER
    )
    for worker in status.workers:
        waiting.add_metric([str(worker.number), str(worker.queue)], worker.queue_waiting)
    yield waiting


def _flow_table(status: Status) -> Iterable[Metric]:
    table = status.flow_table
    yield GaugeMetricFamily(
        "loaded_mp_flow_table_capacity", "Flows that the table is sized for.", table.capacity
    )
    yield GaugeMetricFamily("loaded_mp_flow_table_used", "Entries in use at the last sweep.", table.used)
    yield GaugeMetricFamily(
        "loaded_mp_shared_memory_bytes", "Memory that processes share.", table.memory_bytes
    )
    yield CounterMetricFamily(
        "loaded_mp_flow_table_evictions",
        "Flows that gave way to others because their bucket was full.",
        table.evictions,
    )
