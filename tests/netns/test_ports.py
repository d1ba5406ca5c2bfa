"""Backends with ports of their own: real servers and clients, in both ways of forwarding."""

import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from loaded_mp.fields import Endpoint
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIPS, Lab, Options
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until

FORWARDINGS = ("rewrite", "conntrack")
PORTS = (8080, 8081, 9000, 9003)
SOURCES = 3
#: Answers lines with its address and port, and datagrams with the port; `big` with 3,000,000 bytes.
SERVER = """
import asyncio, contextlib, sys
names, ports = sys.argv[1].split(","), [int(port) for port in sys.argv[2].split(",")]
async def serve(reader, writer):
    port = writer.get_extra_info("sockname")[1]
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(b"x" * 3_000_000 * (line == b"big\\n") + b"%d %s" % (port, line))
class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, client):
        self.transport.sendto(data + b"%d" % self.transport.get_extra_info("sockname")[1], client)
async def main():
    for name in names:
        for port in ports:
            await asyncio.start_server(serve, name, port, limit=1 << 22)
            await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=(name, port))
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
#: Sends a datagram and prints what comes back, or why nothing does.
DATAGRAM = """
import socket, sys
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
client.connect((address, port))
client.send(bytes(size))
try:
    answer = client.recv(65536)
    print(len(answer) - len(answer.lstrip(b"\\0")), answer.lstrip(b"\\0").decode())
except ConnectionRefusedError:
    print("refused")
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        for backend in lab.backends:
            words = (f"{backend.ipv4},{backend.ipv6}", ",".join(map(str, PORTS)))
            server = backend.namespace.talk(sys.executable, "-c", SERVER, *words)
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
        yield lab


def config(lab: Lab, forwarding: str, ports: tuple[int, ...] = (8080, 8081), more: str = "") -> str:
    """`web` has several backends on the first machine and one on the second, `range` one on the first."""
    first, second = lab.backends[:2]
    web = [(each, port) for each in (first.ipv4, first.ipv6) for port in ports]
    web += [(each, 8080) for each in (second.ipv4, second.ipv6)]
    ranged = [(each, 9000) for each in (first.ipv4, first.ipv6)]
    base = lab.config(workers=2, top="goodbye_s = 0.2")
    services = "".join(
        f'[[service]]\nname = "{name}"\nvips = ["{VIPS[0]}", "{VIPS[1]}"]\nlisten = {listen}\n'
        f'forwarding = "{forwarding}"\n'
        + "".join(
            f'[[service.backend]]\naddress = "{Endpoint(ip_address(address), port)}"\n'
            for address, port in backends
        )
        + check
        for name, listen, backends, check in (
            ("web", '["tcp/80"]', web, "[service.check]\ninterval_s = 0.3\nrise = 1\nfall = 1\n"),
            ("range", '["tcp/5000-5004", "udp/5000-5004"]', ranged, ""),
        )
    )
    return base[: base.index("[[service]]")] + services + more


@pytest.fixture
def daemon(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = lab.daemon(config(lab, request.param))
    yield daemon
    daemon.stop()


@pytest.mark.parametrize(
    "daemon", [FORWARDINGS[0], pytest.param(FORWARDINGS[1], marks=pytest.mark.long)], indirect=True
)
def test_each_port_is_a_backend(lab: Lab, daemon: Daemon) -> None:
    for vip in VIPS:
        lines = [Line(lab.client, vip, source, 80) for source in lab.sources(vip)]
        answers = [line.ask() for line in lines]
        assert sorted(answers) == ["8080 hello"] * 2 + ["8081 hello"]
        assert [line.ask() for line in lines] == answers
        line = Line(lab.client, vip, port=80)
        assert line.ask("big").endswith(" big")
        assert line.ask("x" * 1_000_000).endswith("x")
        assert Line(lab.client, vip, port=5003).ask() == "9003 hello"
        assert Line(lab.balancer, vip, port=80).ask() in answers
        for port, size, said in (
            (5003, 3, "3 9003\n"),
            (5000, 20_000, "20000 9000\n"),
            (5001, 3, "refused\n"),
        ):
            words = (sys.executable, "-c", DATAGRAM, vip, str(port), str(size))
            assert lab.client.run(*words).stdout == said
    backends = daemon.backends()
    assert len(backends) == 8
    assert [each.counters["new_flows"] > 0 for each in backends.values()] == [True] * 8
    explained = lab.balancer.run(loaded_mp(), "explain", lab.sources4[0], VIP4, "--port", "5002").stdout
    assert f"destination {VIP4}:5002 becomes {lab.backends[0].ipv4}:9002" in explained
    assert f"in replies source {lab.backends[0].ipv4}:9002 becomes {VIP4}:5002" in explained


def test_a_connection_outlives_what_changes_beside_it(lab: Lab) -> None:
    daemon = lab.daemon(config(lab, "rewrite"))
    path = next(lab.folder.glob("loaded-mp-*.toml"))
    path = max(lab.folder.glob("loaded-mp-*.toml"), key=lambda each: each.stat().st_mtime_ns)
    lines = {
        (vip, port, n): Line(lab.client, vip, source, port)
        for vip in VIPS
        for port in (80, 5003)
        for n, source in enumerate(lab.sources(vip)[:3])
    }
    answers = {key: line.ask() for key, line in lines.items()}
    assert {each.split()[0] for each in answers.values()} == {"8080", "8081", "9003"}
    other = (
        f'[[service]]\nname = "other"\nvips = ["{VIP4}", "192.0.2.77"]\nlisten = ["tcp/81"]\n'
        f'[[service.backend]]\naddress = "{lab.backends[0].ipv4}:8080"\n'
    )
    for changed in (
        config(lab, "rewrite", more=other),
        config(lab, "conntrack", more=other).replace('"web"', '"www"'),
        config(lab, "rewrite"),
    ):
        path.write_text(changed)
        lab.balancer.run(loaded_mp(), "reload")
        assert {key: line.ask() for key, line in lines.items()} == answers
    path.write_text(config(lab, "rewrite", (8080, 9000)))
    lab.balancer.run(loaded_mp(), "reload")
    for key, line in lines.items():
        gone = answers[key].startswith("8081")
        assert line.ask() == ("reset" if gone else answers[key])
    daemon.stop()


@pytest.mark.long
def test_checks_ask_at_a_backends_own_port(lab: Lab) -> None:
    daemon = lab.daemon(config(lab, "rewrite", (8080, 8099)))
    first = lab.backends[0]
    for address in (f"{first.ipv4}:8099", f"[{first.ipv6}]:8099"):
        wait_until(lambda: not daemon.backends()[address].up, f"{address} is down")  # noqa: B023 (it ends here)
        assert daemon.backends()[address].cause == f"connect to {address}: refused"
    assert daemon.backends()[f"{first.ipv4}:8080"].up
    drained = lab.balancer.run(loaded_mp(), "drain", first.ipv4, "-s", "web").stdout
    assert drained.count("drain, weight 0/1") == 2
    assert lab.balancer.run(loaded_mp(), "ready", f"{first.ipv4}:8080", "-s", "web").stdout.count("\n") == 1
    daemon.stop()
