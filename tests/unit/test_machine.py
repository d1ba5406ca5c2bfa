"""What is found on machines that are made up; tests/netns has the trial on a real kernel."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from loaded_mp import machine
from loaded_mp.cli import diagnose
from loaded_mp.config.model import Config
from loaded_mp.machine import Finding, findings

ALL_CAPABILITIES = "000001ffffffffff"
SERVICES = ({"name": "web", "vips": ["192.0.2.10"], "backends": [{"address": "10.0.0.1"}]},)

Write = Callable[[str, str], None]


def config(**more: Any) -> Config:
    return Config.model_validate({"services": SERVICES, "workers": 4, **more})


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A machine that has everything; the function writes into its /proc."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("self/status", f"Name:\tx\nCapEff:\t{ALL_CAPABILITIES}\n")
    write("net/netfilter/nfnetlink_queue", "")
    write("meminfo", "MemTotal: 9 kB\nMemAvailable:   6000000 kB\n")
    write("sys/net/ipv4/ip_forward", "1\n")
    write("sys/net/ipv6/conf/all/forwarding", "1\n")
    write("sys/net/netfilter/nf_conntrack_count", "10\n")
    write("sys/net/netfilter/nf_conntrack_max", "1000\n")
    for name in ("all", "default", "lo", "eth0", "eth1"):
        write(f"sys/net/ipv4/conf/{name}/rp_filter", "0\n")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(machine, "_iptables", lambda: iter([Finding("ok", "iptables", "v1")]))
    monkeypatch.setattr(machine, "_tried", lambda _: [Finding("ok", "NFQUEUE", "bound")])
    monkeypatch.setattr(machine, "why_no_arenas", lambda: "")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    return write


def found(what: str, given: Config | None = None) -> Finding:
    (finding,) = [each for each in findings(given or config()) if each.what == what]
    return finding


def test_a_machine_that_has_everything() -> None:
    assert {each.level for each in findings(config())} == {"ok"}
    assert {each.level for each in findings(None)} == {"ok"}


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, level in (("2.6.32-5-amd64", "fail"), ("3.9.1", "fail"), ("3.10.0", "ok"), ("6.1-x", "ok")):
        system = os.uname_result(("Linux", "host", release, "#1", "x86_64"))
        monkeypatch.setattr(os, "uname", lambda system=system: system)
        assert found("kernel").level == level


def test_missing_capabilities_are_named_and_nothing_is_tried(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("self/status", f"CapEff:\t{0x1FFFFFFFFFF & ~(1 << 12) & ~(1 << 18):016x}\n")
    monkeypatch.setattr(machine, "_tried", lambda _: pytest.fail("tried"))
    finding = found("capabilities")
    assert finding.level == "fail"
    assert "CAP_NET_ADMIN" in finding.text
    assert "CAP_SYS_CHROOT" in finding.text
    assert "CAP_KILL" not in finding.text
    assert found("trial").level == "warning"


def test_the_fast_path_is_none_or_lacks_something(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    off = config(fast_path="off")
    assert found("fast path", off) == Finding("ok", "fast path", 'none: fast_path = "off"')
    assert machine._fast_path(None).level == "ok"
    monkeypatch.setattr(machine, "why_no_arenas", lambda: "it takes Linux 6.12")
    finding = machine._fast_path(None)
    assert (finding.level, finding.text) == ("warning", "it takes Linux 6.12")
    write("self/status", f"CapEff:\t{0x1FFFFFFFFFF & ~(1 << 39):016x}\n")
    finding = machine._fast_path(None)
    assert (finding.level, finding.text) == ("warning", "missing: CAP_BPF")


def test_the_user_of_the_workers() -> None:
    assert found("user").level == "ok"
    finding = found("user", config(user="no-such-user"))
    assert finding.level == "fail"
    assert "no-such-user" in finding.text


def test_queues_in_use(write: Write) -> None:
    line = "{:5d} {:6d} 0 2 65531 0 0 0 1\n"
    write("net/netfilter/nfnetlink_queue", line.format(4, 111) + line.format(9, 222))
    write("222/comm", "suricata\n")
    write("333/comm", "loaded-mp\n")
    assert found("queues").level == "ok"
    finding = found("queues", config(first_queue=1))
    assert finding.level == "warning", "who bound it has ended, and left it to others"
    assert "without a daemon" in finding.text
    finding = found("queues", config(first_queue=6))
    assert finding.level == "fail"
    assert "9" in finding.text
    assert "suricata" in finding.text
    assert "222" in finding.text
    write("net/netfilter/nfnetlink_queue", line.format(0, 333) + line.format(1, -5))
    assert found("queues").level == "warning"
    assert found("queues", config(first_queue=65_533)).level == "fail"
    assert found("queues", config(first_queue=65_532)).level == "ok"


def test_forwarding_that_is_off_is_switched_on_later(write: Write, tmp_path: Path) -> None:
    write("sys/net/ipv4/ip_forward", "0\n")
    finding = found("forwarding IPv4")
    assert finding.level == "ok"
    assert "off" in finding.text
    (tmp_path / "sys/net/ipv6/conf/all/forwarding").unlink()
    assert found("forwarding IPv6").level == "warning"


def test_forwarding_that_cannot_be_switched_on(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("sys/net/ipv4/ip_forward", "0\n")
    system = os.statvfs_result((0,) * 8 + (os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    finding = found("forwarding IPv4")
    assert finding.level == "fail"
    assert "net.ipv4.ip_forward=1" in finding.todo


def test_reverse_path_filters(write: Write) -> None:
    assert found("rp_filter").text == "not strict"
    write("sys/net/ipv4/conf/eth1/rp_filter", "1\n")
    assert "strict on eth1:" in found("rp_filter").text
    write("sys/net/ipv4/conf/all/rp_filter", "1\n")
    assert "strict on eth0, eth1:" in found("rp_filter").text
    write("sys/net/ipv4/conf/all/rp_filter", "2\n")
    assert found("rp_filter").text == "not strict"


def test_a_connection_table_that_is_nearly_full(write: Write) -> None:
    write("sys/net/netfilter/nf_conntrack_count", "800\n")
    finding = found("conntrack")
    assert finding.level == "warning"
    assert "nf_conntrack_max=4000" in finding.todo


def test_too_little_memory(write: Write) -> None:
    assert found("memory").level == "ok"
    assert found("memory", config(flows=33_554_432)).level == "ok"
    write("memory.max", "max\n")
    assert found("memory").level == "ok"
    write("memory.max", str(64 << 20))
    assert found("memory").level == "fail"
    assert found("memory", config(flows=1_024)).level == "ok"
    write("meminfo", "MemAvailable: 1000 kB\n")
    assert found("memory", config(flows=1_024)).level == "fail"


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert found("ulimit").level == "warning"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert found("ulimit").level == "ok"


def test_interfaces_of_the_configuration() -> None:
    given = config(network={"public_interface": "eth0", "private_interface": "eth7"})
    assert found("public_interface", given).level == "ok"
    finding = found("private_interface", given)
    assert finding.level == "fail"
    assert "eth7" in finding.text
    assert finding.todo.endswith("eth0, eth1, lo")


@pytest.mark.parametrize(("level", "status"), [("ok", 0), ("warning", 0), ("fail", 1)])
def test_the_exit_status_and_what_to_do(
    level: Literal["ok", "warning", "fail"], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        diagnose, "findings", lambda _: [Finding("ok", "kernel", "Linux"), Finding(level, "a", "b", "do c")]
    )
    result = CliRunner().invoke(diagnose.command, [])
    assert result.exit_code == status
    assert result.output.splitlines()[0].split() == ["ok", "kernel", "Linux"]
    assert result.output.splitlines()[1].split() == [level, "a", "b"]
    assert result.output.splitlines()[2].strip() == "do c"
