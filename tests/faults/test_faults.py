"""Kill, pause, flood, corrupt: what clients notice, and what the daemon says."""

import concurrent.futures
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIPS, Lab, Options, in_url
from loaded_mp.lab.wait import wait_until

SOURCES = 40
BIG_MIB = 100
KILLED = (0, 1, 2, 3, 0)  #: every worker, and one again after its pause

#: Sends packets, given in hexadecimal, as they are: past what the client's kernel would refuse.
SEND_RAW = """
import socket, sys
destination, *packets = map(bytes.fromhex, sys.argv[1:])
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
    for packet in packets:
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        link.sendto(packet, ("eth0", kind, 0, 0, destination))
"""

FLOOD = """
import socket, sys, time
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.connect((sys.argv[1], 9))
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for _ in range(100):
        try:
            flood.send(b"x" * 18)
        except OSError:
            pass
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        yield lab


@pytest.fixture
def quiet_lab() -> Iterator[Lab]:
    """A lab in which no client of an earlier test still repeats what a flooded queue lost."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config())
    yield daemon
    daemon.stop()


def workers(daemon: Daemon) -> list[int]:
    return [each.pid for each in daemon.status().workers]


def errors(answers: dict[str, list[str]]) -> list[str]:
    return [text for texts in answers.values() for text in texts if text.startswith("error")]


def replaced(daemon: Daemon, number: int, old: int) -> int:
    """Wait until a worker's place is filled by another process."""
    return wait_until(lambda: (pid := workers(daemon)[number]) != old and pid, f"worker {number} is replaced")


@pytest.mark.parametrize("vip", VIPS)
def test_killed_workers_under_load_lose_nothing(lab: Lab, daemon: Daemon, vip: str) -> None:
    checksum = lab.big_file(BIG_MIB)
    killed_enough = threading.Event()

    def download(source: str) -> set[str]:
        command = f"curl -sgf --limit-rate 60M --interface {source} http://{in_url(vip)}/big | sha256sum"
        found = set()
        while not killed_enough.is_set():
            found.add(lab.client.run("sh", "-c", command, timeout_s=120).stdout.split()[0])
        return found

    def ask() -> list[str]:
        found: list[str] = []
        while not killed_enough.is_set():
            found += errors(lab.answers("http", vip, 20, lab.sources(vip)))
        return found

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        downloads = [pool.submit(download, source) for source in lab.sources(vip)[:2]]
        try:
            for number in KILLED:
                pid = workers(daemon)[number]
                os.kill(pid, signal.SIGKILL)
                replaced(daemon, number, pid)
        finally:
            killed_enough.set()
        assert asking.result() == []
        assert [each.result() for each in downloads] == [{checksum}] * 2
    assert sum(each.restarts for each in daemon.status().workers) == len(KILLED)


def test_a_worker_that_hangs_is_replaced(lab: Lab, daemon: Daemon) -> None:
    pids = workers(daemon)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # Asked while nobody serves: the packets wait for the replacements.
    assert errors(lab.answers("http", VIP4, 1, lab.sources4)) == []
    assert not set(pids) & set(workers(daemon))
    assert daemon.log.count("event=worker-hangs") == 4


def test_a_worker_that_keeps_dying_is_restarted_with_growing_pauses(daemon: Daemon) -> None:
    for _ in range(4):
        pid = wait_until(lambda: workers(daemon)[0], "worker 0 runs")
        os.kill(pid, signal.SIGKILL)
        replaced(daemon, 0, pid)
    pauses = [float(text) for text in re.findall(r"event=worker-died .*restart_in_s=([\d.]+)", daemon.log)]
    assert pauses == [0.0, 0.1, 0.2, 0.4]


@pytest.mark.parametrize("vip", VIPS)
def test_a_backend_that_goes_takes_only_its_own_sources_along(lab: Lab, daemon: Daemon, vip: str) -> None:
    sources = lab.sources(vip)
    before = {source: names[0] for source, names in lab.answers("http", vip, 1, sources).items()}
    assert set(before.values()) == {"backend1", "backend2", "backend3"}
    lab.backends[1].stop_web()
    wait_until(lambda: not daemon.backends()[lab.backends[1].ipv4].up, "backend2 is down")
    wait_until(lambda: not daemon.backends()[lab.backends[1].ipv6].up, "backend2 is down")
    after = lab.answers("http", vip, 3, sources)
    assert errors(after) == []
    for source in sources:
        names = set(after[source])
        assert (
            names == {before[source]} if before[source] != "backend2" else names <= {"backend1", "backend3"}
        )
        assert len(names) == 1
    moved = Counter(after[source][0] for source in sources if before[source] == "backend2")
    assert abs(moved["backend1"] - moved["backend3"]) <= 1
    lab.backends[1].start_web()
    wait_until(lambda: daemon.backends()[lab.backends[1].ipv4].up, "backend2 is up again")
    wait_until(lambda: daemon.backends()[lab.backends[1].ipv6].up, "backend2 is up again")
    assert lab.answers("http", vip, 3, sources) == after


def test_all_backends_down_and_back(lab: Lab, daemon: Daemon) -> None:
    for backend in lab.backends:
        backend.stop_web()
    wait_until(lambda: not any(each.up for each in daemon.backends().values()), "all are down")
    assert lab.client.run("ping", "-c", "1", "-W", "0.3", VIP4, check=False).returncode == 1
    assert daemon.status().reasons["no_backend"] >= 1
    for backend in lab.backends:
        backend.start_web()
    wait_until(lambda: all(each.up for each in daemon.backends().values()), "all are up")
    assert errors(lab.answers("http", VIP4, 1, lab.sources4)) == []


def test_a_flood_is_survived_and_counted(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(workers=1, top='queue_length = 16\nfast_path = "off"'))
    floods = [lab.client.start(sys.executable, "-c", FLOOD, VIP4, "0.5") for _ in range(2)]
    for flood in floods:
        flood.wait(20)
    (worker,) = daemon.status().workers
    assert worker.queue_drops + worker.socket_drops + worker.counters["receive_overruns"] > 0
    assert worker.restarts == 0
    assert errors(lab.answers("http", VIP4, 2, lab.sources4)) == []
    daemon.stop()


def test_malformed_packets_are_counted_by_reason(quiet_lab: Lab) -> None:
    from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrRouting, Raw, raw  # noqa: PLC0415

    lab = quiet_lab
    daemon = lab.daemon(lab.config())
    source4, source6, vip6 = lab.sources4[0], lab.sources6[0], VIPS[1]
    bad = {
        "bad_upper_length": [
            IP(src=source4, dst=VIP4) / UDP(sport=1, dport=2, len=4) / b"data",
            IP(src=source4, dst=VIP4) / TCP(dataofs=15),
            IPv6(src=source6, dst=vip6) / UDP(sport=1, dport=2, len=999) / b"data",
        ],
        "too_short": [
            IP(src=source4, dst=VIP4, proto=6) / Raw(b"tiny"),
            IPv6(src=source6, dst=vip6, nh=17) / Raw(b"tiny"),
        ],
        "unknown_extension": [IPv6(src=source6, dst=vip6, nh=135) / Raw(bytes(16))],
        "source_routed": [
            IPv6(src=source6, dst=vip6) / IPv6ExtHdrRouting(segleft=1, addresses=["2001:db8::5"]) / UDP()
        ],
        "checksum_covers_addresses": [IP(src=source4, dst=VIP4, proto=112) / Raw(bytes(20))],
    }

    def counted(reason: str, sent: int) -> bool:
        return daemon.status().reasons[reason] == sent

    link = lab.balancer.run("ip", "-o", "link", "show", "public").stdout
    mac = re.search(r"link/ether (\S+)", link)
    assert mac
    packets = [raw(packet).hex() for packets in bad.values() for packet in packets]
    lab.client.run(sys.executable, "-c", SEND_RAW, mac[1].replace(":", ""), *packets)
    for reason, sent in bad.items():
        wait_until(partial(counted, reason, len(sent)), f"{reason} is counted")
    assert not any(each.counters["to_backend_packets"] for each in daemon.backends().values())
    assert errors(lab.answers("http", VIP4, 1, lab.sources4)) == []
    daemon.stop()


def test_sigterm_under_load_stops_within_its_bound(lab: Lab) -> None:
    daemon = lab.daemon(lab.config())
    flood = lab.client.start(sys.executable, "-c", FLOOD, VIP4, "30")
    wait_until(lambda: daemon.status().workers[0].pid, "it runs")
    daemon.process.terminate()
    assert daemon.process.wait(10) == 0
    flood.kill()
    flood.wait(5)


def test_only_one_daemon_in_a_namespace(lab: Lab, daemon: Daemon) -> None:
    path = lab.folder / "second.toml"
    path.write_text(lab.config())
    second = lab.start_daemon("-c", str(path))
    assert second.process.wait(20) == 1
    assert "another loaded-mp runs in this network namespace" in second.log
    assert errors(lab.answers("http", VIP4, 1, lab.sources4)) == []


def test_reload(lab: Lab) -> None:
    path = lab.folder / "reloaded.toml"
    path.write_text(lab.config(checked=False))
    daemon = lab.start_daemon("-c", str(path)).ready()
    before = lab.answers("http", VIP4, 1, lab.sources4)

    path.write_text(lab.config(checked=False).replace("weight = 1", "weight = -1"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.logged("event=reload-refused")
    assert lab.answers("http", VIP4, 1, lab.sources4) == before

    changed = lab.config(checked=False, weights=(0, 1, 0), top='log_level = "error"')
    path.write_text(changed.replace(VIP4, "192.0.2.11"))
    lab.balancer.run(loaded_mp(), "reload")
    lab.client.ip("route add 192.0.2.11 via 198.18.255.254")
    # Weight 0 takes no new flows and keeps those that it has; the VIP is another, the service the same.
    assert lab.answers("http", "192.0.2.11", 1, lab.sources4) == before
    assert VIP4 not in lab.balancer.run("iptables-save").stdout
    daemon.stop()
    assert "event=reloaded" not in daemon.log
    assert "event=stopped" not in daemon.log  # the new log level


def test_a_reload_while_an_interface_is_away_is_refused_and_changes_nothing(lab: Lab) -> None:
    lab.balancer.ip("link add extra type veth peer name extra2", "link set extra2 up")
    path = lab.folder / "away.toml"
    config = lab.config(checked=False).replace('public_interface = "public"', 'public_interface = "extra"')
    path.write_text(config)
    daemon = lab.start_daemon("-c", str(path)).ready()
    before = lab.answers("http", VIP4, 1, lab.sources4)
    assert errors(before) == []
    rules = lab.balancer.run("iptables-save").stdout.count("LOADED")
    lab.balancer.ip("link delete extra")
    path.write_text(config.replace("weight = 1", "weight = 2"))
    refused = lab.balancer.run(loaded_mp(), "reload", check=False)
    assert refused.returncode == 2
    assert "network.public_interface: this host has no interface 'extra'" in refused.stderr
    path.write_text(config)
    assert "reloaded" in lab.balancer.run(loaded_mp(), "reload").stdout
    assert lab.balancer.run("iptables-save").stdout.count("LOADED") == rules
    assert lab.answers("http", VIP4, 1, lab.sources4) == before
    daemon.stop()
    assert "Traceback" not in daemon.log


def is_gone(daemon: Daemon, pid: int) -> bool:
    return workers(daemon)[0] != pid


def test_a_worker_in_its_pause_holds_up_nobody(lab: Lab, daemon: Daemon) -> None:
    """A worker that keeps dying is started again seldom; what others read changes all the same."""
    for _ in range(7):
        pid = wait_until(lambda: workers(daemon)[0], "worker 0 runs", 20.0)
        os.kill(pid, signal.SIGKILL)
        wait_until(partial(is_gone, daemon, pid), "its end is noticed")
    before = daemon.status()
    assert not before.workers[0].pid, "it pauses for 3.2 s"
    lab.backends[1].stop_web()
    wait_until(lambda: daemon.status().generation > before.generation, "a going down is published", 3.0)
    assert not daemon.status().workers[0].pid, "it still pauses"
    lab.backends[1].start_web()
    wait_until(lambda: daemon.backends()[lab.backends[1].ipv4].up, "backend2 is up again")
    wait_until(lambda: daemon.backends()[lab.backends[1].ipv6].up, "backend2 is up again")


def test_what_the_balancer_says_to_itself_about_a_dead_backend_is_no_lost_traffic(quiet_lab: Lab) -> None:
    lab = quiet_lab
    config = lab.config() + '[[service.backend]]\naddress = "10.0.0.99"\n'
    daemon = lab.daemon(config.replace("timeout_s = 0.3", "timeout_s = 5"))

    def told() -> bool:
        said = lab.balancer.run("nstat", "-asz", "IcmpOutDestUnreachs").stdout
        return not re.search(r"IcmpOutDestUnreachs +0 ", said)

    wait_until(told, "nobody answers ARP for it, and the kernel says so", 20.0)
    wait_until(lambda: not daemon.backends()["10.0.0.99"].up, "it is down")
    assert daemon.status().reasons["no_flow"] == 0
    assert sum(each.counters["packets"] for each in daemon.status().workers) == 0
    daemon.stop()
