"""Packet sizes and the way they take: path MTU, traceroute, fragments, very long packets."""

import re
import sys
from collections.abc import Iterator

import pytest

from loaded_mp.lab.lab import VIPS, Lab, Options
from loaded_mp.lab.transfers import comes_back, downloads, uploads
from loaded_mp.lab.wait import wait_until

FAR_MTU = 1300


#: Among them the ports that traceroute asks for: one by one, as a service with a range of such high ones is
#: not redirected.
LISTEN = ("tcp", "udp/7", "udp/53", "icmp", *(f"udp/{port}" for port in range(33_434, 33_443)))


@pytest.fixture(scope="module", params=["auto", "redirect", pytest.param("off", marks=pytest.mark.long)])
def far(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A router behind the balancer, and a link with a small MTU behind that; with each fast path."""
    with Lab(Options(sources=5, far_mtu=FAR_MTU)) as lab:
        listen = ", ".join(f'"{each}"' for each in LISTEN)
        daemon = lab.daemon(lab.config(top=f'fast_path = "{request.param}"', service=f"listen = [{listen}]"))
        yield lab
        daemon.stop()


@pytest.mark.parametrize("vip", VIPS)
def test_transfers_cross_a_smaller_mtu_behind_the_balancer(far: Lab, vip: str) -> None:
    assert downloads(far, vip)
    assert uploads(far, vip)


@pytest.mark.parametrize("vip", VIPS)
def test_the_client_learns_the_path_mtu(far: Lab, vip: str) -> None:
    words = ("ping", "-M", "do", "-c", "3", "-i", "0.2", "-s", "1400", vip)
    said = far.client.run(*words, check=False)
    assert f"mtu={FAR_MTU}" in (said.stdout + said.stderr).replace("mtu = ", "mtu=").replace("mtu: ", "mtu=")
    assert f"mtu {FAR_MTU}" in far.client.run("ip", "route", "get", vip).stdout


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("way", [(), ("-I",), ("-T", "-p", "80")])
def test_traceroute_arrives(far: Lab, vip: str, way: tuple[str, ...]) -> None:
    family = "-6" if ":" in vip else "-4"
    said = far.client.run("traceroute", family, "-n", "-q", "1", "-w", "1", "-m", "8", *way, vip).stdout
    hops = re.findall(r"^ *\d+ +(\S+)", said, re.MULTILINE)
    assert hops[-1] == vip, said
    assert len(hops) == 3, said
    assert "*" not in hops, said
    backends = {address for backend in far.backends for address in (backend.ipv4, backend.ipv6)}
    assert not backends & set(hops), said


def test_a_smaller_mtu_on_the_balancer_itself() -> None:
    """Its own kernel sends the errors: to clients about rewritten packets, which have to quote the VIP."""
    with Lab(Options(sources=5, public_mtu=1500, private_mtu=1300)) as lab:
        daemon = lab.daemon(lab.config())
        for vip in VIPS:
            said = lab.client.run("ping", "-M", "do", "-c", "2", "-i", "0.2", "-s", "1400", vip, check=False)
            assert "mtu" in said.stdout + said.stderr
            assert "mtu 1300" in lab.client.run("ip", "route", "get", vip).stdout
            lab.client.run("ip", "route", "flush", "cache")
            assert downloads(lab, vip)
            assert uploads(lab, vip)
        daemon.stop()


def test_a_smaller_mtu_on_the_public_side() -> None:
    """The balancer tells the backend, before the reply has become one of the VIP."""
    with Lab(Options(sources=5, public_mtu=1300)) as lab:
        lab.client.ip("link set eth0 mtu 1500")
        daemon = lab.daemon(lab.config())
        for vip in VIPS:
            assert downloads(lab, vip)
            assert uploads(lab, vip)
        daemon.stop()


@pytest.mark.parametrize("mtu", [pytest.param(9000, marks=pytest.mark.long), 65_535])
def test_long_packets(mtu: int) -> None:
    with Lab(Options(sources=5, public_mtu=mtu, private_mtu=mtu)) as lab:
        daemon = lab.daemon(lab.config())
        for vip in VIPS:
            headers = 48 if ":" in vip else 28
            size = min(mtu, 65_528) - headers
            assert "1 received" in lab.client.run("ping", "-c1", "-Mdo", "-s", str(size), vip).stdout
            for length in (size, 60_000):
                assert comes_back(lab, vip, length)
            assert downloads(lab, vip)
            assert uploads(lab, vip)
        assert daemon.status().reasons["cut"] == 0
        daemon.stop()


@pytest.mark.parametrize("vip", VIPS)
def test_fragments_are_put_together_before_the_queue(far: Lab, vip: str) -> None:
    assert comes_back(far, vip, 60_000)


#: Nobody listens where the answer goes.
ASK_WITHOUT_A_PORT = """
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
asking = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
if family == socket.AF_INET6:
    asking.setsockopt(socket.IPPROTO_IPV6, 7, 6)  # IPV6_CHECKSUM (linux/in6.h)
question = bytes(12) + b"\\0\\0\\x10\\0\\1"
asking.sendto(struct.pack("!4H", 40_000, 53, 8 + len(question), 0) + question, (sys.argv[1], 0))
"""


def unreachable(far: Lab, counter: str) -> int:
    """ICMP errors of this kind that backends got."""
    said = [backend.namespace.run("nstat", "-asz", counter).stdout for backend in far.backends]
    return sum(int(number) for each in said for number in re.findall(rf"{counter}\s+(\d+)", each))


@pytest.mark.parametrize("vip", VIPS)
def test_errors_of_clients_reach_their_backend(far: Lab, vip: str) -> None:
    """A client that has closed its port tells the VIP so, and the backend hears it."""
    counter = "Icmp6InDestUnreachs" if ":" in vip else "IcmpInDestUnreachs"
    before = unreachable(far, counter)
    far.client.run(sys.executable, "-c", ASK_WITHOUT_A_PORT, vip)
    wait_until(lambda: unreachable(far, counter) == before + 1, "the backend hears it")
