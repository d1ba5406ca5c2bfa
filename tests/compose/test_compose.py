"""The compose lab's files fit together; with LOADED_MP_COMPOSE=1 it is really built and brought up."""

import json
import os
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from loaded_mp.config.toml import read_toml
from loaded_mp.lab.wait import wait_until
from loaded_mp.memory.counters import BackendCounter, FastPathCounter, FlowTableCounter, WorkerCounter
from loaded_mp.metrics.collector import StatusCollector
from loaded_mp.status import (
    BackendStatus,
    FastPathStatus,
    FlowTableStatus,
    ServiceStatus,
    Status,
    WorkerStatus,
)

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DASHBOARD = ROOT / "grafana/dashboards/overview.json"
WITHOUT_GRAFANA = ("balancer", "backend1", "backend2", "backend3", "clients", "prometheus")

STATUS = Status(
    version="0",
    uptime_s=1.0,
    generation=1,
    services=(
        ServiceStatus(
            name="web",
            vips=(),
            listen=(),
            scheduler="wrr",
            forwarding="rewrite",
            affinity="source",
            checks=(),
            checks_needed="all",
            backends=(
                BackendStatus(
                    name="b",
                    address="a",
                    weight=1,
                    effective_weight=1,
                    wanted="ready",
                    up=True,
                    since_s=0.0,
                    cause="",
                    flows=0,
                    counters={each.name.lower(): 0 for each in BackendCounter},
                    rates={each.name.lower(): 0.0 for each in BackendCounter},
                ),
            ),
        ),
    ),
    workers=(
        WorkerStatus(
            number=0,
            queue=0,
            pid=1,
            core=None,
            restarts=0,
            queue_waiting=0,
            queue_drops=0,
            socket_drops=0,
            over_share=0,
            counters={each.name.lower(): 0 for each in WorkerCounter},
        ),
    ),
    flow_table=FlowTableStatus(
        capacity=1,
        used=0,
        memory_bytes=0,
        counters={each.name.lower(): 0 for each in FlowTableCounter},
    ),
    fast_path=FastPathStatus(
        mode="auto",
        interfaces=(),
        why_not='fast_path = "off"',
        not_redirected={},
        counters=dict.fromkeys((each.name.lower() for each in FastPathCounter), 0),
    ),
    tracked=None,
    drifts_mended=0,
    counters_age_s=0.5,
    counters_fault="",
    reasons={"cut": 0},
)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_file_that_is_mounted_or_built_exists() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", ()):
            assert (ROOT / volume.split(":")[0]).exists(), volume
        if "build" in service:
            folder = ROOT / service["build"]["context"]
            dockerfile = service["build"]["dockerfile"]
            assert (folder / dockerfile).exists() or (ROOT / dockerfile).exists()


def test_the_balancer_has_only_named_capabilities() -> None:
    balancer = compose()["services"]["balancer"]
    assert balancer["cap_drop"] == ["ALL"]
    assert "SYS_ADMIN" not in balancer["cap_add"]
    assert "privileged" not in balancer


def test_its_configuration_is_good_and_names_the_backends_of_the_file() -> None:
    config = read_toml(ROOT / "deploy/compose/loaded-mp.toml").config()
    services = compose()["services"]
    addresses = {
        network[key]
        for name in ("backend1", "backend2", "backend3")
        for network in services[name]["networks"].values()
        for key in ("ipv4_address", "ipv6_address")
    }
    assert {str(backend.address) for service in config.services for backend in service.backends} == addresses


def test_every_metric_of_the_dashboard_is_exported() -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: STATUS))
    exported = set(re.findall(r"^(loaded_mp_\w+)", generate_latest(registry).decode(), re.MULTILINE))
    used = {name for query in queries() for name in re.findall(r"loaded_mp_\w+", query)}
    assert used
    assert used <= exported


def docker(*words: str, timeout_s: int = 900) -> str:
    command = ["docker", "compose", "-f", str(COMPOSE), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """Set PROMETHEUS_IMAGE where the official one cannot be had."""
    try:
        docker("build", "balancer", "backend1")
        docker("up", "-d", *WITHOUT_GRAFANA)
        yield
    finally:
        docker("down", "-v", "-t", "3")


def ask(query: str) -> list[dict[str, Any]]:
    for name, value in (("$service", ".*"), ("$__rate_interval", "30s"), ("$__range", "60s")):
        query = query.replace(name, value)
    url = "http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=10) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


@pytest.mark.skipif(not os.environ.get("LOADED_MP_COMPOSE"), reason="LOADED_MP_COMPOSE is not set")
@pytest.mark.usefixtures("running")
def test_traffic_flows_and_prometheus_sees_it() -> None:
    def balanced() -> bool:
        try:
            served = ask('sum by (backend) (rate(loaded_mp_backend_bytes_total{direction="to_client"}[30s]))')
        except OSError:
            return False
        return len(served) == 3 and all(float(each["value"][1]) > 0 for each in served)

    wait_until(balanced, "every backend serves", 120)
    for query in queries():
        assert ask(query), query
    assert ask("min(loaded_mp_backend_up)")[0]["value"][1] == "1"

    def all_answer() -> bool:
        said = docker("logs", "--no-log-prefix", "--tail", "1", "clients")
        return "failed" not in said and all(f"backend{number}" in said for number in (1, 2, 3))

    wait_until(all_answer, "clients are served by every backend, without a failure", 60)
