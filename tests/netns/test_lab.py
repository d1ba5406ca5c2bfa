"""The lab by itself, the balancer a plain router: every way through it, every option, nothing left behind."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from loaded_mp.lab.backend import Backend
from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import OUTSIDE4, OUTSIDE6, VIPS, Lab, Options, in_url
from loaded_mp.lab.namespace import Namespace, remove_leftovers

MTU = 1500
PING_HEADERS = 28  #: bytes of IPv4 and ICMP


def gateway(**changes: object) -> Lab:
    options: dict[str, object] = {"sources": 4, "gateway": True} | changes
    return Lab(Options(**options))  # type: ignore[arg-type]


def addresses(backend: Backend) -> tuple[str, str]:
    return backend.ipv4, backend.ipv6


def assert_all_answer(lab: Lab) -> None:
    for backend in lab.backends:
        for address in addresses(backend):
            for kind in ("http", "dns"):
                sources = lab.sources(address)
                answers = lab.answers(kind, address, 2, sources)
                assert answers == {source: [backend.name] * 2 for source in sources}, (kind, address)


def echoed(namespace: Namespace, address: str, size: int) -> int:
    """The length of what the echo of `size` bytes brings back.

    It tries again, as the datagrams by which both sides learn the MTU of the path are lost (RFC 8201).
    """
    program = (
        "import socket, sys\n"
        "address, size = sys.argv[1], int(sys.argv[2])\n"
        "echo = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "echo.settimeout(0.2)\n"
        "for _ in range(50):\n"
        "    try:\n"
        "        echo.sendto(bytes(size), (address, 7))\n"
        "        print(len(echo.recv(65536)))\n"
        "        break\n"
        "    except TimeoutError:\n"
        "        continue\n"
    )
    return int(namespace.run(sys.executable, "-c", program, address, str(size)).stdout)


def runs(pid: int) -> bool:
    """Whether it exists and is no zombie that its new parent has yet to wait for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def left_behind() -> tuple[list[str], list[str]]:
    """Namespaces and folders of this process's labs."""
    namespaces = [path.name for path in Path("/run/netns").glob(f"lmp{os.getpid()}.*")]
    return namespaces, [path.name for path in Path(tempfile.gettempdir()).glob(f"lmp{os.getpid()}.*")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"far_mtu": 1400},
        {"one_interface": True},
        {"one_machine": True},
        {"offloads": False},
        {"public_mtu": 1400, "private_mtu": 1300},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_every_backend_answers_over_both_families(changes: dict[str, object]) -> None:
    with gateway(**changes) as lab:
        assert_all_answer(lab)
        for address in addresses(lab.backends[1]):
            assert echoed(lab.client, address, 60_000) == 60_000


@pytest.mark.parametrize(
    "changes",
    [
        {"far_mtu": 1400},
        pytest.param({"one_interface": True}, marks=pytest.mark.long),
        pytest.param({"one_machine": True}, marks=pytest.mark.long),
        {"offloads": False},
    ],
    ids="-".join,
)
def test_a_daemon_serves_at_once_and_spreads_evenly(changes: dict[str, object]) -> None:
    with gateway(gateway=False, sources=12, **changes) as lab:
        daemon = lab.daemon(lab.config(workers=2))
        for vip in VIPS:
            answers = lab.answers("http", vip, 2, lab.sources(vip))
            names = Counter(name for each in answers.values() for name in each)
            assert names == {backend.name: 8 for backend in lab.backends}, daemon.log
        assert "backend-down" not in daemon.log
        daemon.stop()


def test_backends_reach_the_host_outside_through_a_daemon() -> None:
    with gateway(gateway=False, outside=True) as lab:
        daemon = lab.daemon(lab.config(workers=2))
        for address in (OUTSIDE4, OUTSIDE6):
            backend = lab.backends[0].namespace
            assert backend.run("curl", "-sf", f"http://{in_url(address)}/").stdout == "backend0\n"
            assert '"backend0"' in backend.run("dig", "+short", f"@{address}", "who", "TXT").stdout
        daemon.stop()


def test_links_have_the_wanted_mtu() -> None:
    with gateway(far_mtu=1400, public_mtu=1450) as lab:
        backend = lab.backends[0]

        def ping(length: int) -> subprocess.CompletedProcess[str]:
            size = str(length - PING_HEADERS)
            return lab.client.run(
                "ping", "-M", "do", "-c", "1", "-W", "2", "-s", size, backend.ipv4, check=False
            )

        assert "mtu=1450" in ping(1451).stderr
        assert ping(1400).returncode == 0
        assert "mtu = 1400" in ping(1401).stdout


def longest_frame(lab: Lab) -> int:
    """Of a download from a backend, as the balancer's public interface sees it."""
    checksum = lab.big_file(4)
    backend = lab.backends[0]
    with lab.capture(lab.balancer, "public", "tcp", "port", "80") as path:
        shell = f"set -o pipefail; curl -sf http://{backend.ipv4}/big | sha256sum"
        assert lab.client.run("bash", "-c", shell).stdout.split()[0] == checksum
    printed = subprocess.run(
        ["tcpdump", "-nr", str(path)], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    return max(int(line.rpartition("length ")[2].split(":")[0]) for line in printed.splitlines())


@pytest.mark.parametrize(
    ("offloads", "as_wanted"),
    [(True, lambda length: length > MTU), (False, lambda length: 1000 < length < MTU)],
)
def test_without_offloads_no_segment_is_longer_than_the_wire_allows(
    offloads: bool, as_wanted: Callable[[int], bool]
) -> None:
    with gateway(offloads=offloads) as lab:
        assert as_wanted(longest_frame(lab))


def test_the_host_outside_answers_the_balancer() -> None:
    with gateway(outside=True) as lab:
        for address in (OUTSIDE4, OUTSIDE6):
            assert lab.balancer.run("curl", "-sf", f"http://{in_url(address)}/").stdout == "backend0\n"
            assert echoed(lab.balancer, address, 1000) == 1000


def test_a_web_server_stops_and_starts_again() -> None:
    with gateway() as lab:
        backend = lab.backends[2]
        source = lab.sources4[0]
        backend.stop_web()
        assert lab.answers("http", backend.ipv4, 1, [source])[source][0].startswith("error")
        assert lab.answers("dns", backend.ipv4, 1, [source]) == {source: [backend.name]}
        backend.start_web()
        assert lab.answers("http", backend.ipv4, 1, [source]) == {source: [backend.name]}


def test_packets_to_a_vip_reach_the_balancer() -> None:
    with gateway() as lab:
        for vip in VIPS:
            lab.balancer.ip(f"address add {vip} dev lo")
            lab.client.run("ping", "-I", lab.sources(vip)[3], "-c", "1", "-W", "2", vip)


def test_two_labs_stand_side_by_side() -> None:
    with gateway() as one, gateway(sources=1) as other:
        assert_all_answer(one)
        assert_all_answer(other)


def test_a_capture_with_a_wrong_filter_fails() -> None:
    with (
        gateway() as lab,
        pytest.raises(RuntimeError, match="syntax error"),
        lab.capture(lab.client, "eth0", "port", "port"),
    ):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaded_mp.lab.namespace._STOP_S", 1.0)
    try:
        with gateway(far_mtu=1400, outside=True) as lab:
            assert left_behind() != ([], [])
            lab.client.start("sh", "-c", "trap '' TERM; while :; do sleep 0.2; done")
            deaf = lab.client.talk("true")
            assert deaf.stdin
            deaf.stdin.write("what nobody reads")
            processes = [pid for each in (lab.client, lab.backends[0].namespace) for pid in each.processes()]
            assert processes
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert left_behind() == ([], [])
    assert not any(map(runs, processes))


def test_a_lab_that_was_killed_is_removed_by_the_next() -> None:
    program = (
        "import os, signal\n"
        "from loaded_mp.lab.lab import Lab, Options\n"
        "with Lab(Options(sources=1)) as lab:\n"
        "    print(*lab.backends[0].namespace.processes(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    output, _ = killed.communicate(timeout=60)
    processes = [int(pid) for pid in output.split()]
    assert processes
    removed = remove_leftovers()
    assert f"lmp{killed.pid}.0-client" in removed
    assert not list(Path("/run/netns").glob(f"lmp{killed.pid}.*"))
    assert not list(Path(tempfile.gettempdir()).glob(f"lmp{killed.pid}.*"))
    assert not any(map(runs, processes))


#: A stand-in for loaded-mp: says that it is ready, and that it compiled before or after that.
SAYS = 'trap "exit 0" TERM; echo {}; echo event=ready; sleep 0.3; echo {}; while :; do sleep 0.1; done'


@pytest.mark.parametrize(("before", "after"), [("event=compiled-late", ""), ("", "event=compiled-late")])
def test_a_daemon_that_compiles_late_fails_its_test(tmp_path: Path, before: str, after: str) -> None:
    with gateway(sources=1) as lab, (tmp_path / "log").open("w") as log:
        process = lab.balancer.start("sh", "-c", SAYS.format(before, after), output=log)
        daemon = Daemon(lab.balancer, tmp_path / "log", process)
        if after:
            daemon.ready().logged(after)
        with pytest.raises(RuntimeError, match="compiled while packets waited"):
            daemon.ready() if before else daemon.stop()
