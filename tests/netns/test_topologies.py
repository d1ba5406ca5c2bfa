"""The network in other shapes: what is on the wire, one interface, one machine, a world outside."""

import os
import re
import signal
from collections.abc import Iterator

import pytest
from scapy.all import ICMP, IP, TCP, UDP, IPv6, Packet, rdpcap

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import OUTSIDE4, OUTSIDE6, VIP4, VIP6, VIPS, Lab, Options, in_url
from loaded_mp.lab.wait import wait_until


def served(lab: Lab, vip: str, sources: int = 12) -> set[str]:
    answers = lab.answers("http", vip, 2, lab.sources(vip)[:sources])
    assert all(len(set(names)) == 1 for names in answers.values()), answers
    return {names[0] for names in answers.values()}


ALL = {"backend1", "backend2", "backend3"}


def checksums(packet: Packet) -> list[int]:
    """Every checksum in a packet, from the outside in; 0 where there is none."""
    found = []
    for layer in packet.layers():
        for name in ("chksum", "cksum"):
            if name in [field.name for field in layer.fields_desc]:
                found.append(getattr(packet[layer], name) or 0)
    return found


def without_checksums(packet: Packet) -> Packet:
    """The packet as scapy builds it when it has to compute all checksums itself."""
    copy = packet.copy()
    layer = copy
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                del layer.fields[name]
        layer = layer.payload
    return copy.__class__(bytes(copy))


def test_only_what_the_paper_says_is_on_the_wires_and_every_checksum_is_right() -> None:
    with Lab(Options(sources=5, offloads=False)) as lab:
        daemon = lab.daemon(lab.config(checked=False))
        for vip in VIPS:
            for side, interface in (("outside", "public"), ("inside", "private")):
                with lab.capture(lab.balancer, interface, "tcp or udp or icmp or icmp6") as path:
                    source = lab.sources(vip)[0]
                    lab.client.run("curl", "-sg", "--interface", source, f"http://{in_url(vip)}/")
                    lab.client.run("dig", "+short", "-b", source, f"@{vip}", "who", "TXT")
                    lab.client.run("ping", "-c", "2", "-i", "0.1", "-I", source, vip)
                packets = [each for each in rdpcap(str(path)) if not is_link(each)]
                assert {kind for each in packets for kind in (TCP, UDP) if kind in each} == {TCP, UDP}
                for packet in packets:
                    network = packet[IPv6] if IPv6 in packet else packet[IP]
                    ends = {network.src, network.dst}
                    assert source in ends, packet
                    (other,) = ends - {source}
                    backends = {each for backend in lab.backends for each in (backend.ipv4, backend.ipv6)}
                    assert other == vip if side == "outside" else other in backends, packet
                    assert checksums(packet) == checksums(without_checksums(packet)), packet
        daemon.stop()


def is_link(packet: Packet) -> bool:
    """Neighbour discovery and MLD."""
    return (
        IPv6 in packet
        and ICMP not in packet
        and TCP not in packet
        and UDP not in packet
        and (
            "ICMPv6 Neighbor" in packet.summary()
            or "MLD" in packet.summary()
            or "ICMPv6ND" in packet.summary()
        )
    )


@pytest.mark.parametrize(
    "options",
    [
        Options(sources=12, one_interface=True),
        pytest.param(Options(sources=12, one_machine=True), marks=pytest.mark.long),
    ],
)
def test_one_interface_and_one_machine(options: Options) -> None:
    with Lab(options) as lab:
        daemon = lab.daemon(lab.config())
        for vip in VIPS:
            assert served(lab, vip) == ALL
            assert "2 received" in lab.client.run("ping", "-c", "2", "-i", "0.1", vip).stdout
        daemon.stop()


@pytest.fixture(scope="module")
def wide() -> Iterator[Lab]:
    with Lab(Options(sources=12, outside=True)) as lab:
        daemon = lab.daemon(lab.config())
        yield lab
        daemon.stop()


def test_what_backends_start_themselves_works(wide: Lab) -> None:
    for backend in wide.backends:
        for address in (OUTSIDE4, OUTSIDE6):
            assert backend.namespace.run("curl", "-sg", f"http://{in_url(address)}/").stdout == "backend0\n"
            answer = backend.namespace.run("dig", "+short", f"@{address}", "who", "TXT").stdout
            assert answer.strip() == '"backend0"'
    for vip in VIPS:
        assert served(wide, vip) == ALL


def test_neighbours_are_found_without_static_entries(wide: Lab) -> None:
    for namespace in (wide.client, wide.balancer, *(backend.namespace for backend in wide.backends)):
        assert "PERMANENT" not in namespace.run("ip", "neighbour").stdout
        namespace.run("ip", "neighbour", "flush", "all")
    for vip in VIPS:
        assert served(wide, vip) == ALL


TWO_SERVICES = f"""
workers = 2
metrics_listen = ""
[network]
public_interface = "public"
private_interface = "private"
private_addresses = ["10.0.0.254/24", "fd00::fe/64"]
backend_networks = ["10.0.0.0/24", "fd00::/64"]
[[service]]
name = "web"
vips = ["{VIP4}", "192.0.2.11"]
listen = ["tcp/80"]
backend = [{{ address = "10.0.0.1" }}, {{ address = "10.0.0.2" }}]
[[service]]
name = "names"
vips = ["{VIP4}"]
listen = ["udp/53"]
backend = [{{ address = "10.0.0.2" }}, {{ address = "10.0.0.3" }}]
"""


def test_services_share_a_vip_and_a_backend_and_leave_other_ports_alone() -> None:
    with Lab(Options(sources=12)) as lab:
        lab.client.ip("route add 192.0.2.11 via 198.18.255.254")
        daemon = lab.daemon(TWO_SERVICES)
        assert served(lab, VIP4) == {"backend1", "backend2"}
        assert served(lab, "192.0.2.11") == {"backend1", "backend2"}
        names = lab.answers("dns", VIP4, 1, lab.sources4)
        assert {name for each in names.values() for name in each} == {"backend2", "backend3"}
        # The balancer itself answers what no service listens on.
        before = counters(daemon)
        assert "1 received" in lab.client.run("ping", "-c", "1", VIP4).stdout
        assert lab.client.run("curl", "-s", "-m", "2", f"http://{VIP4}:81/", check=False).returncode == 7
        assert counters(daemon) == before
        daemon.stop()


def counters(daemon: Daemon) -> list[dict[str, int]]:
    return [each.counters for each in daemon.backends().values()]


def state(lab: Lab) -> str:
    words = (
        ("ip", "address"), ("ip", "route"), ("ip", "-6", "route"),
        ("sysctl", "net.ipv4.conf", "net.ipv6.conf", "net.ipv4.ip_forward"),
    )  # fmt: skip
    said = "".join(lab.balancer.run(*each).stdout for each in words)
    rules = lab.balancer.run("iptables-save").stdout + lab.balancer.run("ip6tables-save").stdout
    rules = "".join(line for line in rules.splitlines(True) if line[0] not in "#*" and line != "COMMIT\n")
    lifetimes = re.sub(r"(valid_lft|preferred_lft|expires) \S+|mac_addr.*", "", said)
    return lifetimes + re.sub(
        r"\[\d+:\d+\]|^:(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING).*\n", "", rules, flags=re.M
    )


def test_stop_start_and_crash_leave_the_host_as_it_was() -> None:
    with Lab(Options(sources=12)) as lab:
        before = state(lab)
        for _ in range(2):
            lab.daemon(lab.config()).stop()
            assert state(lab) == before

        daemon = lab.daemon(lab.config())
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait(5)
        # Its workers serve on, with the last snapshot.
        assert served(lab, VIP4) == ALL
        successor = lab.daemon(lab.config())
        assert "event=handed-over workers=4" in successor.log
        assert served(lab, VIP6) == ALL

        os.kill(successor.process.pid, signal.SIGKILL)
        successor.process.wait(5)
        lab.balancer.run(loaded_mp(), "cleanup")
        assert state(lab) == before
        wait_until(lambda: not lab.balancer.processes(), "the orphans end")
