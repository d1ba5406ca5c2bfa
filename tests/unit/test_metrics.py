"""A Status as Prometheus reads it."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loaded_mp.metrics import queues
from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.metrics.queues import QueueStatus, read_queues
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import BackendStatus, FlowTableStatus, ServiceStatus, Status, WorkerStatus

BACKEND = BackendStatus(
    name="web1",
    address="10.0.0.1",
    weight=3,
    effective_weight=3,
    up=True,
    flows=7,
    new_flows=9,
    to_backend_packets=11,
    to_backend_bytes=1100,
    to_client_packets=13,
    to_client_bytes=1300,
)
STATUS = Status(
    version="1.2.3",
    uptime_s=5.5,
    generation=4,
    services=(
        ServiceStatus(
            "web", ("192.0.2.10",), ("tcp/80",), "wrr", (BACKEND, replace(BACKEND, name="web2", up=False))
        ),
    ),
    workers=(WorkerStatus(0, 10, 77, None, 100, 40, 1, 2, 3, 4, 5),),
    flow_table=FlowTableStatus(1000, 16, 2, 4096),
    reasons={reason.name.lower(): int(reason) for reason in Reason if reason is not Reason.OK},
)


def samples(status: Status) -> dict[tuple[str, tuple[str, ...]], float]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_figure_is_exported_with_its_labels() -> None:
    found = samples(STATUS)
    web1 = ("10.0.0.1", "web", "web1")
    assert found["loaded_mp_backend_up", web1] == 1
    assert found["loaded_mp_backend_up", ("10.0.0.1", "web", "web2")] == 0
    assert found["loaded_mp_backend_weight", web1] == 3
    assert found["loaded_mp_backend_effective_weight", web1] == 3
    assert found["loaded_mp_backend_flows", web1] == 7
    assert found["loaded_mp_backend_new_flows_total", web1] == 9
    for name, direction, value in (
        ("packets", "to_backend", 11),
        ("bytes", "to_backend", 1100),
        ("packets", "to_client", 13),
        ("bytes", "to_client", 1300),
    ):
        labels = tuple(sorted((*web1, direction)))
        assert found[f"loaded_mp_backend_{name}_total", labels] == value
    for name, value in (
        ("packets_total", 100),
        ("batches_total", 40),
        ("receive_overruns_total", 1),
        ("queue_waiting", 2),
        ("queue_drops_total", 3),
        ("socket_drops_total", 4),
        ("restarts_total", 5),
    ):
        assert found[f"loaded_mp_worker_{name}", ("0", "10")] == value
    assert found["loaded_mp_flow_table_capacity", ()] == 1000
    assert found["loaded_mp_flow_table_used", ()] == 16
    assert found["loaded_mp_flow_table_evictions_total", ()] == 2
    assert found["loaded_mp_shared_memory_bytes", ()] == 4096
    assert found["loaded_mp_uptime_seconds", ()] == 5.5
    assert found["loaded_mp_build_info", ("1.2.3",)] == 1


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK])
def test_every_reason_is_exported(reason: Reason) -> None:
    found = samples(STATUS)
    assert found["loaded_mp_unbalanced_packets_total", (reason.name.lower(),)] == int(reason)


def test_queues_are_read_as_the_kernel_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nfnetlink_queue"
    monkeypatch.setattr(queues, "_PATH", file)
    assert read_queues() == {}
    file.write_text(
        "    3  27988     5 2 65531     7     9     6112  1\n"
        "   12      1     0 2 65531     0     0        0  1\n"
    )
    assert read_queues() == {3: QueueStatus(5, 7, 9), 12: QueueStatus(0, 0, 0)}
