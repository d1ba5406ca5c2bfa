"""Connections by the VIP, directly, around the balancer and from it, and what a reload does to them."""

import sys
from collections.abc import Iterator
from threading import Thread

import pytest

from loaded_mp.lab.clients import KINDS
from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIP4, VIP6, VIPS, Lab, Options, in_url
from loaded_mp.lab.speaker import PORT as LINE_PORT
from loaded_mp.lab.talk import Clients, Line
from loaded_mp.lab.wait import wait_until

FORWARDINGS = ("rewrite", "conntrack")
LISTEN = 'listen = ["tcp/80", "tcp/7000", "udp/53", "icmp"]'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=12)) as lab:
        yield lab


@pytest.fixture(scope="module", params=FORWARDINGS)
def daemon(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config(workers=2, service=f'forwarding = "{request.param}"\n{LISTEN}'))
    yield daemon
    daemon.stop()


def address(lab: Lab, backend: int, vip: str) -> str:
    return lab.backends[backend].ipv6 if ":" in vip else lab.backends[backend].ipv4


@pytest.mark.parametrize("vip", VIPS)
def test_a_client_speaks_to_its_own_backend_directly(lab: Lab, daemon: Daemon, vip: str) -> None:
    source = lab.sources(vip)[0]
    line = Line(lab.client, vip, source)
    home = line.ask().split()[0]
    assert lab.answers("dns", vip, 1, [source]) == {source: [home]}
    for number, backend in enumerate(lab.backends):
        direct = address(lab, number, vip)
        url = f"http://{in_url(direct)}/"
        assert lab.client.run("curl", "-sg", "--interface", source, url).stdout == f"{backend.name}\n"
        assert Line(lab.client, direct, source).ask() == f"{backend.name} hello"
        words = ("dig", "+short", "-b", source, f"@{direct}", "who", "TXT")
        assert lab.client.run(*words).stdout == f'"{backend.name}"\n'
        ping = lab.client.run("ping", "-c", "2", "-i", "0.1", "-I", source, direct).stdout
        assert f"from {direct}" in ping
        assert "2 received" in ping
    assert line.ask() == f"{home} hello"


@pytest.mark.parametrize("vip", VIPS)
def test_this_host_and_the_backends_are_clients_too(lab: Lab, daemon: Daemon, vip: str) -> None:
    for namespace in (lab.balancer, *(backend.namespace for backend in lab.backends)):
        line = Line(namespace, vip)
        assert line.begun == "connected"
        assert line.ask().endswith(" hello")
        assert '"backend' in namespace.run("dig", "+short", f"@{vip}", "who", "TXT").stdout
        assert "2 received" in namespace.run("ping", "-c", "2", "-i", "0.1", vip).stdout


@pytest.mark.parametrize("vip", VIPS)
def test_a_backend_may_be_balanced_to_itself(lab: Lab, daemon: Daemon, vip: str) -> None:
    first = lab.backends[0].namespace
    start, mask = ("fd00::1", "64") if ":" in vip else ("10.0.0.1", "24")
    more = [f"{start}{digit}" for digit in range(1, 4)]
    first.ip(*(f"address add {source}/{mask} dev eth0" for source in more))
    answers = [Line(first, vip, source).ask() for source in (start, *more)]
    first.ip(*(f"address delete {source}/{mask} dev eth0" for source in more))
    assert {answer.split()[0] for answer in answers} == {"backend1", "backend2", "backend3"}


@pytest.fixture(scope="module")
def other() -> Iterator[Lab]:
    with Lab(Options(sources=12)) as lab:
        yield lab


MISPLACED = """
import sys
from scapy.all import IP, IPv6, TCP, UDP, Ether, sendp, getmacbyip, getmacbyip6
source, vip, client, hardware = sys.argv[1:]
network = IPv6 if ":" in vip else IP
for destination in (vip, client):
    for layer in (UDP(sport=53, dport=1000), TCP(sport=7000, dport=1000, flags="PA")):
        sendp(Ether(dst=hardware) / network(src=source, dst=destination) / layer, iface="eth0", verbose=0)
"""


@pytest.mark.parametrize("vip", VIPS)
def test_a_backends_address_on_the_clients_side_is_dropped_and_counted(other: Lab, vip: str) -> None:
    daemon = other.daemon(other.config(workers=2, service=LISTEN))
    before = daemon.status().reasons["misplaced"]
    hardware = other.balancer.run("cat", "/sys/class/net/public/address").stdout.strip()
    other.client.run(
        sys.executable, "-c", MISPLACED, address(other, 0, vip), vip, other.sources(vip)[0], hardware
    )
    wait_until(lambda: daemon.status().reasons["misplaced"] == before + 4, "all four are counted")
    daemon.stop()


def lines(other: Lab, count: int = 4) -> list[Line]:
    return [Line(other.client, vip, source) for vip in VIPS for source in other.sources(vip)[:count]]


def go_on(other: Lab, talking: list[Line], homes: list[str]) -> None:
    """The server speaks first, then the client; nobody notices anything."""
    other.let_backends_speak()
    assert [line.hear() for line in talking] == [f"{home} speaks" for home in homes]
    assert [line.ask() for line in talking] == [f"{home} hello" for home in homes]


@pytest.mark.parametrize("forwarding", FORWARDINGS)
def test_a_reload_that_adds_a_vip_or_a_service_is_not_noticed(other: Lab, forwarding: str) -> None:
    service = f'forwarding = "{forwarding}"\n{LISTEN}'
    config = other.config(workers=2, service=service)
    daemon = other.daemon(config)
    talking = lines(other)
    homes = [line.ask().split()[0] for line in talking]
    second = config.replace(f'vips = ["{VIP4}", ', f'vips = ["192.0.2.11", "2001:db8:10::11", "{VIP4}", ')
    assert second != config
    daemon.reload(second)
    go_on(other, talking, homes)
    mail = config[config.index("[[service]]") :].replace('"web"', '"mail"').replace(VIP4, "192.0.2.12")
    daemon.reload(second + mail.replace(VIP6, "2001:db8:10::12"))
    go_on(other, talking, homes)
    daemon.reload(config)
    go_on(other, talking, homes)
    daemon.stop()


@pytest.mark.parametrize("forwarding", ["rewrite", pytest.param("conntrack", marks=pytest.mark.long)])
def test_a_service_that_is_renamed_is_the_same(other: Lab, forwarding: str) -> None:
    config = other.config(workers=2, service=f'forwarding = "{forwarding}"\n{LISTEN}')
    daemon = other.daemon(config)
    talking = lines(other)
    homes = [line.ask().split()[0] for line in talking]
    daemon.reload(config.replace('name = "web"', 'name = "site"'))
    go_on(other, talking, homes)
    assert [service.name for service in daemon.status().services] == ["site"]
    daemon.stop()


def test_connections_go_on_in_the_other_way_of_forwarding(other: Lab) -> None:
    first, second = (
        other.config(workers=2, service=f'forwarding = "{forwarding}"\n{LISTEN}')
        for forwarding in FORWARDINGS
    )
    daemon = other.daemon(first)
    talking = lines(other)
    homes = [line.ask().split()[0] for line in talking]
    other.big_file(1)
    clients = [Clients(other, vip, 1) for vip in VIPS]
    for configs in ((second,), (first,), (second, first, second), (first, second, first)):
        for config in configs:
            daemon.reload(config)
        go_on(other, talking, homes)
    assert [each.served() for each in clients] == [f"{KINDS * 12} []"] * len(VIPS)
    daemon.stop()


@pytest.mark.parametrize(
    ("what", "forwarding"),
    [
        ("backend", "rewrite"),
        ("backend", "conntrack"),
        pytest.param("service", "rewrite", marks=pytest.mark.long),
    ],
)
def test_what_a_reload_takes_away_is_told_at_both_ends(other: Lab, forwarding: str, what: str) -> None:
    service = f'forwarding = "{forwarding}"\n{LISTEN}'
    config = other.config(workers=2, service=service, top="goodbye_s = 4")
    daemon = other.daemon(config)
    talking = lines(other, 6)
    homes = [line.ask().split()[0] for line in talking]
    if what == "backend":
        without = config[: config.index('[[service.backend]]\nname = "backend3"')]
    else:
        without = (
            config.replace('name = "web"', 'name = "site"')
            .replace(VIP4, "192.0.2.99")
            .replace(VIP6, "2001:db8:10::99")
        )
    reloading = Thread(target=daemon.reload, args=(without,))
    reloading.start()
    daemon.logged("event=goodbye")
    gone = [what == "service" or home == "backend3" for home in homes]
    told = [line for number, line in enumerate(talking) if gone[number] and number % 2]
    for line in told:
        line.say()
    assert [line.hear() for line in told] == ["reset"] * len(told)
    other.let_backends_speak()
    for number, (line, home) in enumerate(zip(talking, homes, strict=True)):
        if line in told:
            continue
        heard = line.hear()
        if (
            gone[number] and heard == f"{home} speaks"
        ):  # in the second half words arrive, their receipt is reset
            heard = line.hear()
        assert heard == ("reset" if gone[number] else f"{home} speaks")
    words = ("ss", "-Htn", "state", "established", "sport", "=", f":{LINE_PORT}")
    standing = "".join(backend.namespace.run(*words).stdout for backend in other.backends)
    assert not [line.port for line in told if f":{line.port}\n" in standing.replace(" ", "")]
    reloading.join()
    assert [line.ask() for number, line in enumerate(talking) if not gone[number]] == [
        f"{home} hello" for number, home in enumerate(homes) if not gone[number]
    ]
    daemon.stop()


def test_what_conntrack_forgets_is_found_again(other: Lab) -> None:
    daemon = other.daemon(other.config(workers=2, service=LISTEN))
    talking = lines(other)
    homes = [line.ask().split()[0] for line in talking]
    other.balancer.run(sys.executable, "-c", "from pyroute2 import NFCTSocket; NFCTSocket().flush()")
    go_on(other, talking, homes)
    daemon.stop()


def test_a_flow_that_was_forgotten_is_entered_again_by_its_backend(other: Lab) -> None:
    daemon = other.daemon(other.config(workers=2, service=f"{LISTEN}\ntcp_idle_s = 2\nunconfirmed_s = 1"))
    talking = lines(other)
    homes = [line.ask().split()[0] for line in talking]
    wait_until(lambda: daemon.status().flow_table.used == 0, "all flows are forgotten", 20)
    go_on(other, talking, homes)
    daemon.stop()
