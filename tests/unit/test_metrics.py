"""A Status as Prometheus reads it."""

import re
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loaded_mp.memory.counters import (
    OF_REQUESTS,
    BackendCounter,
    Counter,
    FastPathCounter,
    FlowTableCounter,
    WorkerCounter,
)
from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.network.queues import QueueStatus, read_queues
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import (
    BackendStatus,
    FastPathStatus,
    FlowTableStatus,
    ServiceStatus,
    Status,
    TrackedStatus,
    WorkerStatus,
)


def counted(counters: type[Counter], first: int) -> dict[str, int]:
    """A value of its own for each counter."""
    return {each.name.lower(): first + each for each in counters}


BACKEND = BackendStatus(
    name="web1",
    address="10.0.0.1",
    weight=3,
    effective_weight=3,
    wanted="ready",
    up=True,
    since_s=5.5,
    cause="",
    flows=7,
    counters=counted(BackendCounter, 1000),
    rates={each.name.lower(): 12.5 + each for each in BackendCounter},
)
DOWN = BACKEND.model_copy(
    update={"name": "web2", "up": False, "since_s": 185.0, "cause": "connect to 10.0.0.1:80: refused"}
)
STATUS = Status(
    version="1.2.3",
    uptime_s=5.5,
    generation=4,
    services=(
        ServiceStatus(
            name="web",
            vips=("192.0.2.10",),
            listen=("tcp/80",),
            scheduler="wrr",
            forwarding="rewrite",
            affinity="source",
            checks=("TCP port 80",),
            checks_needed="all",
            backends=(BACKEND, DOWN),
        ),
    ),
    workers=(
        WorkerStatus(
            number=0,
            queue=10,
            pid=77,
            core=None,
            restarts=5,
            queue_waiting=2,
            queue_drops=3,
            socket_drops=4,
            over_share=6,
            counters=counted(WorkerCounter, 2000),
        ),
    ),
    flow_table=FlowTableStatus(
        capacity=1000, used=16, memory_bytes=4096, counters=counted(FlowTableCounter, 3000)
    ),
    fast_path=FastPathStatus(
        mode="auto",
        interfaces=(),
        why_not='fast_path = "off"',
        not_redirected={},
        counters=dict.fromkeys((each.name.lower() for each in FastPathCounter), 0),
    ),
    tracked=TrackedStatus(connections=50, limit=1000, percent=5),
    drifts_mended=0,
    counters_age_s=0.5,
    counters_fault="",
    reasons={reason.name.lower(): int(reason) for reason in Reason if reason is not Reason.OK},
)


def exposition(status: Status) -> str:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    return generate_latest(registry).decode()


def samples(status: Status) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(exposition(status))
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
    assert found["loaded_mp_backend_new_flows_total", web1] == BACKEND.counters["new_flows"]
    for name, direction in (
        ("packets", "to_backend"),
        ("bytes", "to_backend"),
        ("packets", "to_client"),
        ("bytes", "to_client"),
    ):
        labels = tuple(sorted((*web1, direction)))
        assert found[f"loaded_mp_backend_{name}_total", labels] == BACKEND.counters[f"{direction}_{name}"]
    counters = STATUS.workers[0].counters
    for name, value in (
        ("packets_total", counters["packets"]),
        ("batches_total", counters["batches"]),
        ("receive_overruns_total", counters["receive_overruns"]),
        ("unsent_verdicts_total", counters["unsent_verdicts"]),
        ("queue_waiting", 2),
        ("queue_drops_total", 3),
        ("socket_drops_total", 4),
        ("over_share_total", 6),
        ("restarts_total", 5),
    ):
        assert found[f"loaded_mp_worker_{name}", ("0", "10")] == value
    assert found["loaded_mp_flow_table_capacity", ()] == 1000
    assert found["loaded_mp_flow_table_used", ()] == 16
    assert found["loaded_mp_flow_table_evictions_total", ()] == 3000
    assert found["loaded_mp_shared_memory_bytes", ()] == 4096
    assert found["loaded_mp_tracked_connections", ()] == 50
    assert found["loaded_mp_tracked_connections_limit", ()] == 1000
    assert found["loaded_mp_uptime_seconds", ()] == 5.5
    assert found["loaded_mp_counters_age_seconds", ()] == 0.5
    assert found["loaded_mp_build_info", ("1.2.3",)] == 1


@pytest.mark.parametrize("counter", [*BackendCounter, *WorkerCounter, *FlowTableCounter])
def test_every_counter_is_exported_with_its_help(counter: Counter) -> None:
    first = {BackendCounter: 1000, WorkerCounter: 2000, FlowTableCounter: 3000}[type(counter)]
    values = [value for (name, _), value in samples(STATUS).items() if name.endswith("_total")]
    assert first + counter in values
    assert re.search(rf"^# HELP loaded_mp_\w+_total .*{re.escape(counter.help)}", exposition(STATUS), re.M)


def test_of_replies_that_do_not_pass_there_are_no_figures() -> None:
    (service,) = STATUS.services
    counters = {each.name.lower(): 5 for each in OF_REQUESTS}
    backends = (BACKEND.model_copy(update={"counters": counters}), DOWN)
    now = STATUS.model_copy(update={"services": (service.model_copy(update={"backends": backends}),)})
    found = {(name, labels) for name, labels in samples(now) if name.startswith("loaded_mp_backend_")}
    web1, web2 = ({labels for _, labels in found if each in labels} for each in ("web1", "web2"))
    assert any("to_client" in labels for labels in web2)
    assert not any("to_client" in labels for labels in web1)
    assert any("to_backend" in labels for labels in web1)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK])
def test_every_reason_is_exported(reason: Reason) -> None:
    found = samples(STATUS)
    assert found["loaded_mp_unbalanced_packets_total", (reason.name.lower(),)] == int(reason)


def test_queues_are_read_as_the_kernel_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "net/netfilter/nfnetlink_queue"
    assert read_queues(tmp_path) == {}
    file.parent.mkdir(parents=True)
    file.write_text(
        "    3  27988     5 2 65531     7     9     6112  1\n"
        "   12     -1     0 2 65531     0     0        0  1\n"
    )
    assert read_queues(tmp_path) == {3: QueueStatus(27_988, 5, 7, 9), 12: QueueStatus(-1, 0, 0, 0)}


def test_a_scheduler_of_the_operator_s_fails_or_not() -> None:
    figure = ("loaded_mp_scheduler_failing", ("web",))
    assert figure not in samples(STATUS)
    for fault in ("", "/etc/mine.py:2: NameError"):
        own = {"scheduler": "/etc/mine.py", "scheduler_fault": fault}
        services = (STATUS.services[0].model_copy(update=own),)
        assert samples(STATUS.model_copy(update={"services": services}))[figure] == bool(fault)


def test_a_kernel_that_tracks_no_connections_has_no_figures_of_them() -> None:
    assert "tracked" not in exposition(STATUS.model_copy(update={"tracked": None}))


def test_the_days_of_a_certificate_count_from_now() -> None:
    seen = BACKEND.model_copy(update={"certificate_expires_s": time.time() + 3 * 86_400})
    service = STATUS.services[0].model_copy(update={"backends": (seen, DOWN)})
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: STATUS.model_copy(update={"services": (service,)})))
    name = "loaded_mp_backend_certificate_days"
    labels = {"service": "web", "backend": "web1", "address": "10.0.0.1"}
    assert registry.get_sample_value(name, labels) == pytest.approx(3, abs=0.01)
    assert registry.get_sample_value(name, labels | {"backend": "web2"}) is None  # none was seen
