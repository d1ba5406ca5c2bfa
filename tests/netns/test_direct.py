"""Requests by the balancer, answers past it: direct routing and tunnels."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIPS, Lab, Options, in_url
from loaded_mp.lab.talk import Line
from loaded_mp.lab.transfers import comes_back, downloads, uploads

SOURCES = 12
MTU = 1400
WAYS = {
    "dr": 'forwarding = "dr"\n',
    "ipip": 'forwarding = "tunnel"\n',
    "gue": 'forwarding = "tunnel"\ntunnel = {kind = "gue"}\n',
}


def config(lab: Lab, service: str, top: str = "") -> str:
    return lab.config((3, 2, 1), workers=2, service=service, top=top)


def lines(lab: Lab, count: int = 4) -> list[Line]:
    return [Line(lab.client, vip, source) for vip in VIPS for source in lab.sources(vip)[:count]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES, direct=True, private_mtu=MTU)) as lab:
        for backend in lab.backends:
            backend.take_out()
        yield lab


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(config(lab, WAYS["dr"]))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module", params=WAYS)
def way(lab: Lab, daemon: Daemon, request: pytest.FixtureRequest) -> str:
    daemon.reload(config(lab, WAYS[request.param]))
    return str(request.param)


@pytest.mark.parametrize("vip", VIPS)
def test_clients_spread_and_stay_and_are_answered_past_the_balancer(
    lab: Lab, daemon: Daemon, way: str, vip: str
) -> None:
    sources = lab.sources(vip)
    with lab.capture(lab.balancer, "any", f"src host {vip} and (tcp or udp)") as path:
        answers = lab.answers("http", vip, 2, sources)
        home = {source: names[0] for source, names in answers.items()}
        assert answers == {source: [home[source]] * 2 for source in sources}
        assert Counter(home.values()) == {"backend1": 6, "backend2": 4, "backend3": 2}
        assert lab.answers("dns", vip, 1, sources) == {source: [home[source]] for source in sources}
        assert "2 received" in lab.client.run("ping", "-c", "2", "-i", "0.1", "-I", sources[0], vip).stdout
    assert not lab.balancer.run("tcpdump", "-n", "-r", str(path)).stdout
    one = next(each for each in daemon.backends().values() if each.flows)
    assert one.counters["connections"] >= 2
    assert not any(name.startswith("to_client") for name in (*one.counters, *one.rates))
    shown = lab.balancer.run(loaded_mp(), "status").stdout
    assert re.search(r"^backend1 \S+ .* -  +-$", shown, re.MULTILINE)


@pytest.mark.parametrize("vip", VIPS)
def test_every_byte_arrives_both_ways_and_a_narrow_way_is_told(
    lab: Lab, daemon: Daemon, way: str, vip: str
) -> None:
    before = daemon.status().reasons
    assert downloads(lab, vip)
    assert uploads(lab, vip)
    mtu = MTU - {"dr": 0, "ipip": 20, "gue": 28}[way] - (20 if ":" in vip and way != "dr" else 0)
    words = ("ping", "-c", "1", "-W", "2", "-M", "do", "-s")
    lab.client.run("ip", "-6" if ":" in vip else "-4", "route", "flush", "cache")
    said = lab.client.run(*words, str(mtu), vip, check=False)
    # By an ICMP error, or by the client itself, where what came before was late and has told it already.
    assert re.search(rf"mtu ?[=:] ?{mtu}\b", said.stdout + said.stderr)
    assert "1 received" in lab.client.run(*words, str(mtu - 48), vip).stdout
    for size in (1, 3_000, 60_000):
        assert comes_back(lab, vip, size)
    now = daemon.status()
    assert now.reasons | {"no_flow": 0} == before | {"no_flow": 0}
    assert sum(each.counters["unsent_verdicts"] for each in now.workers) == 0


def test_what_the_operators_rules_mark_goes_by_the_mark(lab: Lab, daemon: Daemon, way: str) -> None:
    """Also where a rule that comes later would mark what is decided."""
    daemon.reload(config(lab, WAYS[way] + 'listen = ["mark/7"]'))
    for vip, tool in zip(VIPS, ("iptables", "ip6tables"), strict=True):
        marked, other = lab.sources(vip)[:2]
        rule = f"PREROUTING -s {marked} -p tcp --dport 80 -j MARK --set-mark 7"
        lab.balancer.run(tool, "-t", "raw", "-I", *rule.split())
        (names,) = lab.answers("http", vip, 3, [marked]).values()
        assert len(set(names)) == 1
        assert names[0].startswith("backend")
        url = f"http://{in_url(vip)}/"
        asked = lab.client.run("curl", "-s", "-m", "2", "--interface", other, url, check=False)
        assert asked.returncode != 0
        lab.balancer.run(tool, "-t", "raw", "-D", *rule.split())
    daemon.reload(config(lab, WAYS[way]))


def test_a_backend_that_drains_keeps_its_connections(lab: Lab, daemon: Daemon) -> None:
    talking = lines(lab, 6)
    homes = [line.ask().split()[0] for line in talking]
    lab.balancer.run(loaded_mp(), "drain", "backend1")
    assert [line.ask() for line in talking] == [f"{home} hello" for home in homes]
    new = [f"198.18.9.{number}" for number in range(1, 7)]
    lab.client.ip(*(f"address add {source}/16 dev eth0" for source in new))
    answers = lab.answers("http", VIP4, 1, new)
    assert {name for names in answers.values() for name in names} == {"backend2", "backend3"}
    lab.balancer.run(loaded_mp(), "ready", "backend1")


def test_connections_go_on_or_are_told_when_the_way_changes(lab: Lab, daemon: Daemon) -> None:
    """A backend knows them by its own address in one way, by the VIP in the others."""
    daemon.reload(config(lab, WAYS["dr"]))
    talking = lines(lab)
    homes = [line.ask().split()[0] for line in talking]
    for way in ("gue", "ipip"):
        daemon.reload(config(lab, WAYS[way]))
        assert [line.ask() for line in talking] == [f"{home} hello" for home in homes]
    for service in ('forwarding = "rewrite"', WAYS["ipip"]):
        daemon.reload(config(lab, service))
        are_told(lab, talking, homes)
        talking = lines(lab)
        assert [line.ask().split()[0] for line in talking] == homes


def test_a_stop_tells_clients_that_say_or_hear_something(lab: Lab, daemon: Daemon) -> None:
    daemon.reload(config(lab, WAYS["ipip"], top="goodbye_s = 1"))
    talking = lines(lab)
    homes = [line.ask().split()[0] for line in talking]
    daemon.process.terminate()
    daemon.logged("event=goodbye")
    are_told(lab, talking, homes)
    daemon.stop()
    assert "LOADED-" not in lab.balancer.run("iptables-save").stdout


def are_told(lab: Lab, talking: list[Line], homes: list[str]) -> None:
    """Half of the clients say something, the others hear something: all are reset."""
    for line in talking[::2]:
        line.say()
    lab.let_backends_speak()
    for line, home in zip(talking, homes, strict=True):
        heard = line.hear()
        assert heard == "reset" or (heard == f"{home} speaks" and line.ask() == "reset")
