"""Machines are found by an echo to all, in both families; those that vanish leave; a flood is bounded."""

import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.backend import Backend
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIPS, Lab, Options
from loaded_mp.lab.wait import wait_until

MOST, FLOODS = 8, 8
CHECK = "[service.check]\nport = {port}\ninterval_s = 0.2\ntimeout_s = 0.3\nrise = 1\nfall = 2\n"
DISCOVERY = "[service.discovery]\ninterval_s = 0.4\nfall = 2\nmost = {most}\n{more}"
CONFIG = """
workers = 2
metrics_listen = ""
goodbye_s = 0
[network]
public_interface = "public"
private_interface = "private"
private_addresses = ["10.0.0.254/24", "fd00::fe/64"]
backend_networks = ["10.0.0.0/24", "fd00::/64"]
broadcast = "10.0.0.255"
[[service]]
name = "web"
vips = {vips}
"""
#: Answers each echo request with as many replies as are asked for, each from another address of 10.1.0.0/16.
FLOOD = """
import socket, struct, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
heard.setsockopt(socket.SOL_SOCKET, 25, b"eth0\\0")
said = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
print("ready", flush=True)
while True:
    packet, (asker, _) = heard.recvfrom(2048)
    if packet[20] != 8:
        continue
    body = bytearray(packet[20:])
    body[0] = 0
    body[2:4] = b"\\0\\0"
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    body[2:4] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    for number in range(int(sys.argv[1])):
        source = bytes([10, 1, number >> 8, number & 255])
        ends = source + socket.inet_aton(asker)
        header = struct.pack("!BBHHHBBH8s", 69, 0, 20 + len(body), 0, 0, 64, 1, 0, ends)
        said.sendto(header + body, (asker, 0))
    print("flooded", flush=True)
"""
#: Accepts connections to any address of its machine.
ACCEPT = """
import socket
listening = socket.create_server(("0.0.0.0", 81), backlog=256)
print("ready", flush=True)
while True:
    listening.accept()[0].close()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=24)) as lab:
        for backend in lab.backends:
            backend.answer_broadcasts()
        yield lab


def config(lab: Lab, more: str = "", port: int = 80, most: int = MOST, vips: tuple[str, ...] = VIPS) -> str:
    listed = ", ".join(f'"{vip}"' for vip in vips)
    return (
        CONFIG.format(vips=f"[{listed}]") + CHECK.format(port=port) + DISCOVERY.format(most=most, more=more)
    )


def addresses(*backends: Backend) -> set[str]:
    return {address for backend in backends for address in (backend.ipv4, backend.ipv6)}


def serving(daemon: Daemon) -> set[str]:
    return {address for address, backend in daemon.backends().items() if backend.up}


def is_served_by(daemon: Daemon, *backends: Backend) -> None:
    wanted = addresses(*backends)
    try:
        wait_until(lambda: serving(daemon) == wanted == set(daemon.backends()), f"only {wanted} serve", 10)
    except TimeoutError:
        pytest.fail(f"{set(daemon.backends())}, expected {wanted}:\n{daemon.log}")


def test_three_machines_are_found_and_their_loss_is_noticed(lab: Lab) -> None:
    one, two, three = lab.backends
    three.stop_web()
    lab.balancer.ip("address add 10.0.0.77/32 dev lo")  # of this machine, though not of its interface
    daemon = lab.daemon(config(lab))
    started = time.monotonic()
    is_served_by(daemon, one, two)  # three answers the echo, and no check
    found_s = time.monotonic() - started
    three.start_web()
    is_served_by(daemon, one, two, three)
    for vip in VIPS:
        answers = lab.answers("http", vip, 1, lab.sources(vip))
        assert {names[0] for names in answers.values()} == {each.name for each in lab.backends}
    lab.balancer.run(loaded_mp(), "restart")
    daemon.logged("event=handed-over")
    is_served_by(daemon, one, two, three)
    assert "event=joined" not in daemon.log.split("event=handed-over")[1]
    lab.switch.ip("link set to-backend2 down")
    three.stop_web()
    started = time.monotonic()
    is_served_by(daemon, one)
    lost_s = time.monotonic() - started
    # It is said once all of it is done, a moment after it holds.
    daemon.logged(f"event=left service=web backend={two.ipv6} cause=")
    lab.switch.ip("link set to-backend2 up")
    three.start_web()
    for backend in lab.backends:
        assert re.search(rf"event=joined service=web backend={backend.ipv4} ", daemon.log)
    assert "discovery-hindered" not in daemon.log
    daemon.stop()
    lab.balancer.ip("address del 10.0.0.77/32 dev lo")
    print(f"found within {found_s:.2f} s, lost after {lost_s:.2f} s")
    assert "event=left" not in daemon.log.split("event=stopping")[1]


def test_only_those_join_that_are_allowed_and_a_reload_ends_it(lab: Lab) -> None:
    one, two, three = lab.backends
    path = lab.folder / "allowed.toml"
    path.write_text(config(lab, f'allow = ["{one.ipv4}/32", "{two.ipv4}/32", "{two.ipv6}/128"]'))
    daemon = lab.start_daemon("-c", str(path)).ready()
    wanted = {one.ipv4, two.ipv4, two.ipv6}
    wait_until(lambda: serving(daemon) == wanted, "the allowed ones serve")
    listed = "".join(f'[[service.backend]]\naddress = "{each}"\n' for each in (three.ipv4, three.ipv6))
    path.write_text(config(lab).split("[service.discovery]")[0] + listed)
    daemon.process.send_signal(signal.SIGHUP)
    is_served_by(daemon, three)
    daemon.stop()


@pytest.mark.long
def test_a_flood_of_answers_changes_nothing_beyond_the_ceiling(lab: Lab) -> None:
    one = lab.backends[0]
    one.namespace.ip("route add local 10.1.0.0/16 dev lo")
    lab.balancer.ip("route add 10.1.0.0/16 via 10.0.0.1 dev private onlink")
    for words in ((ACCEPT,), (FLOOD, "10000")):
        said = one.namespace.talk(sys.executable, "-u", "-c", *words).stdout
        assert said
        assert said.readline() == "ready\n"
    more = 'networks = ["10.0.0.0/8"]\n'
    daemon = lab.daemon(config(lab, more, port=81, vips=(VIP4,)))
    wait_until(lambda: len(serving(daemon)) == MOST, f"the ceiling:\n{daemon.log}", 20)
    members = set(daemon.backends())
    before_s = cpu_s(daemon.process.pid)
    began = time.monotonic()
    for _ in range(FLOODS):
        assert said
        assert said.readline() == "flooded\n"
    used_s = cpu_s(daemon.process.pid) - before_s
    print(f"{used_s:.2f} s of CPU in {time.monotonic() - began:.2f} s, {FLOODS} floods")
    assert set(daemon.backends()) == members
    assert daemon.log.count("event=joined") == MOST
    assert "event=left" not in daemon.log
    assert daemon.log.count("which is the most") == 1
    daemon.stop()


def cpu_s(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
