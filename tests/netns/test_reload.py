"""What changes while the daemon runs: said before and after, and nothing else is touched."""

import itertools
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.control.client import _post
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIP6, Lab, Options
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import FlowsStatus, FlowStatus, Forecast, Outcome

SOURCES = 40
RELOADS = 6
_HOLD_QUEUE = """
import time
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(2, print)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        yield lab


@pytest.fixture
def path(lab: Lab) -> Path:
    return lab.folder / "reload.toml"


@pytest.fixture
def daemon(lab: Lab, path: Path) -> Iterator[Daemon]:
    path.write_text(lab.config(workers=2, checked=False, top="goodbye_s = 0.2"))
    daemon = lab.start_daemon("-c", str(path)).ready()
    yield daemon
    daemon.stop()
    assert "Traceback" not in daemon.log, daemon.log
    assert "LOADED" not in lab.balancer.run("iptables-save").stdout


def said(lab: Lab, *words: str, status: int = 0) -> list[str]:
    """What the command prints, and its exit status."""
    done = lab.balancer.run(loaded_mp(), *words, check=False, timeout_s=60)
    assert done.returncode == status, done.stdout + done.stderr
    return (done.stdout + done.stderr).splitlines()


def homes(lab: Lab, vip: str = VIP4) -> dict[str, str]:
    """Who answers each source."""
    return {source: name for source, (name,) in lab.answers("http", vip, 1, lab.sources(vip)).items()}


def without(text: str, address: str) -> str:
    """The configuration without a backend."""
    head, *tables = text.split("[[service.backend]]")
    return "[[service.backend]]".join([head, *(each for each in tables if f'"{address}"' not in each)])


def test_a_dry_run_says_what_the_reload_then_does(lab: Lab, daemon: Daemon, path: Path) -> None:
    before = homes(lab)
    backend = lab.backends[1]
    moving = list(before.values()).count(backend.name)
    path.write_text(without(path.read_text(), backend.ipv4))
    verb = "flow moves" if moving == 1 else "flows move"
    wanted = [
        f"service web: backend {backend.name} ({backend.ipv4}) leaves: {moving} {verb}",
        f"flows: {moving} move, 0 end",
    ]
    foretold = said(lab, "reload", "--dry-run")
    assert [foretold[0], *foretold[-2:]] == [*wanted, "dry run"]
    assert said(lab, "plan", "-c", str(path)) == foretold
    assert homes(lab) == before
    talking = {name: Line(lab.client, VIP4, source) for source, name in before.items()}
    assert {name: line.ask() for name, line in talking.items()} == {name: f"{name} hello" for name in talking}
    counters = {address: each.counters for address, each in daemon.backends().items()}
    assert said(lab, "reload") == [*wanted, "reloaded"]
    after = homes(lab)
    assert backend.name not in after.values()
    went = Counter(after[source] for source, name in before.items() if name == backend.name)
    assert foretold[1:-2] == [
        *(f"service web IPv4: {_flows(went[each])} from {backend.name} to {each}" for each in sorted(went)),
        f"service web IPv4: new flows, at first: backend1 33.3% -> 50.0%, {backend.name} 33.3% -> 0.0%,"
        " backend3 33.3% -> 50.0%",
    ]
    stayed = {source for source, name in before.items() if name != backend.name}
    assert {source: after[source] for source in stayed} == {source: before[source] for source in stayed}
    assert talking.pop(backend.name).ask() == "reset"
    assert {name: line.ask() for name, line in talking.items()} == {name: f"{name} hello" for name in talking}
    for address, each in daemon.backends().items():
        assert all(each.counters[name] >= count for name, count in counters[address].items())
    assert said(lab, "reload") == ["reloaded: nothing changes"]


def _flows(count: int) -> str:
    return "1 flow" if count == 1 else f"{count} flows"


def test_what_if_is_what_then_happens(lab: Lab, path: Path) -> None:
    path.write_text(lab.config(workers=2, checked=False, top="goodbye_s = 0.2", service='scheduler = "mh"'))
    daemon = lab.start_daemon("-c", str(path)).ready()
    before = homes(lab)
    gone = lab.backends[0]
    asked = said(lab, "whatif", "--without", gone.ipv4, "--json")
    found = Forecast.model_validate_json("\n".join(asked))
    (service,) = found.services
    assert service.exact
    assert homes(lab) == before
    said(lab, "remove", gone.ipv4)
    after = homes(lab)
    moved = Counter((before[each], after[each]) for each in before if before[each] != after[each])
    assert {(each.backend, each.to_backend): each.flows for each in service.moves} == moved
    assert found.moves == moved.total() == list(before.values()).count(gone.name)
    assert {each.address: each.flows_then for each in service.spread if each.address != gone.ipv4} == {
        address: each.flows for address, each in daemon.backends().items() if "." in address
    }
    daemon.stop()


def test_connections_outlive_changes_of_affinity_and_a_restart(lab: Lab, daemon: Daemon, path: Path) -> None:
    talking: dict[Line, str] = {}

    def stay() -> None:
        assert {line: line.ask() for line in talking} == talking

    for number, affinity in enumerate(("source", "connection", "source/24/64", "connection", "source")):
        path.write_text(
            lab.config(workers=2, checked=False, service=f'affinity = "{affinity}"\ntcp_idle_s = 15')
        )
        said(lab, "reload")
        stay()
        for vip in (VIP4, VIP6):
            new = [Line(lab.client, vip, source) for source in lab.sources(vip)[2 * number : 2 * number + 3]]
            talking |= {line: line.ask() for line in new}
        stay()
    said(lab, "restart")
    wait_until(lambda: daemon.log.count("event=ready") == 2, "the restarted daemon", 30.0)
    stay()
    assert {each.source for each in flows(daemon) if "/24" in each.source} == {"198.18.0.0/24"}
    wait_until(lambda: not flows(daemon), "the end of all flows", 60.0)

    def repeats() -> bool:
        before = daemon.status().fast_path.counters["to_backend"]
        homes(lab)
        return daemon.status().fast_path.counters["to_backend"] > before

    if not daemon.status().fast_path.why_not:
        wait_until(repeats, "the fast path, as no flow from before is left", 60.0)


def flows(daemon: Daemon) -> tuple[FlowStatus, ...]:
    return daemon.ask("flows", FlowsStatus, most=1_000).flows


def test_what_a_reload_cannot_do_is_said_and_the_rest_is_done(lab: Lab, daemon: Daemon, path: Path) -> None:
    path.write_text("flows = 4096\n" + path.read_text().replace("weight = 1", "weight = 2", 1))
    assert said(lab, "reload", status=1) == [
        f"service web: backend backend1 ({lab.backends[0].ipv4}): weight: 1 -> 2",
        "flows: 0 move, 0 end",
        "reloaded",
        "only a stop and a start take over flows: 1048576 -> 4096",
    ]
    assert daemon.backends()[lab.backends[0].ipv4].weight == 2


def test_a_reload_that_fails_leaves_everything_as_it_was(lab: Lab, daemon: Daemon, path: Path) -> None:
    text, before = path.read_text(), homes(lab)
    holder = lab.balancer.start(sys.executable, "-c", _HOLD_QUEUE)
    wait_until(
        lambda: "\n    2 " in lab.balancer.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout,
        "another program has queue 2",
    )
    path.write_text(text.replace("workers = 2", "workers = 3").replace('name = "web"', 'name = "shop"'))
    assert "queue 2" in said(lab, "reload", status=2)[0]
    holder.kill()
    assert homes(lab) == before
    path.write_text(text.replace("weight = 1", "weight = 2", 1))
    assert said(lab, "reload")[-1] == "reloaded"
    assert homes(lab) == before


def test_backends_come_and_go_by_the_operators_word(lab: Lab, daemon: Daemon, path: Path) -> None:
    first, second, third = lab.backends
    said(lab, "remove", "-s", "web", first.ipv4)
    said(lab, "remove", "backend2")
    assert set(homes(lab).values()) == set(homes(lab, VIP6).values()) - {first.name} == {third.name}
    assert "the last IPv4 backend" in said(lab, "remove", "backend3", status=1)[0]
    assert "there is no backend 'backend2'" in said(lab, "remove", "backend2", status=1)[0]
    assert said(lab, "add", "web", f"{second.ipv4},weight=7,name=again") == [
        f"service web: backend again ({second.ipv4}) joins, weight 7",
        "flows: 0 move, 0 end",
        f"added {second.ipv4}",
    ]
    said(lab, "restart")
    wait_until(lambda: "event=ready" in daemon.log, "it goes on")
    now = daemon.backends()
    assert set(now) == {second.ipv4, third.ipv4, first.ipv6, third.ipv6}
    assert now[second.ipv4].weight == 7
    text = path.read_text()
    *lines, last = said(lab, "save")
    assert lines[-1] == f"service web: + backend {second.ipv4}, weight 7"
    assert len(lines) == 4
    assert last.startswith(f"saved in {path}; as it was: {path}.before-save")
    assert said(lab, "reload") == ["reloaded: nothing changes"]
    path.write_text(text)
    said(lab, "reload")
    assert set(daemon.backends()) == {each for b in lab.backends for each in (b.ipv4, b.ipv6)}
    assert daemon.backends()[second.ipv4].weight == 1


def reload(lab: Lab) -> Outcome:
    return Outcome.model_validate_json(_post("/reload", b"{}", f"/run/netns/{lab.balancer.name}"))


def variants(lab: Lab, forwarding: str) -> Iterator[str]:
    """Configurations that differ in what a reload can change without taking a backend away."""
    second = '[[service]]\nname = "other"\nvips = ["192.0.2.11"]\n'
    second += f'[[service.backend]]\naddress = "{lab.backends[0].ipv4}"\n'
    for number in itertools.count():
        text = lab.config(
            (1 + number % 3, 2, 1),
            workers=1 + number % 4,
            service=f'forwarding = "{forwarding}"',
            checked=number % 5 > 1,
        )
        yield text + (second if number % 2 else "")


@pytest.mark.parametrize("forwarding", ["rewrite", "conntrack"])
def test_no_request_fails_while_everything_is_reloaded(
    lab: Lab, daemon: Daemon, path: Path, forwarding: str
) -> None:
    path.write_text(next(variants(lab, forwarding)))
    reload(lab)
    words = f"wrk -t 1 -c 16 -d 600s --timeout 5s http://{VIP4}/".split()
    keeping = lab.client.talk(*words)
    anew = lab.client.talk(*words[:1], "-H", "Connection: close", *words[1:])
    for text in itertools.islice(variants(lab, forwarding), 1, RELOADS):
        path.write_text(text)
        outcome = reload(lab)
        assert outcome.changes
        assert not outcome.mistakes
    for each in (keeping, anew):
        each.send_signal(signal.SIGINT)
        said, _ = each.communicate(timeout=20)
        assert int(re.findall(r"(\d+) requests in", said)[0]) > 10 * RELOADS
        assert "Socket errors" not in said
        assert "Non-2xx" not in said
    now = daemon.status()
    assert {each.restarts for each in now.workers} == {0}
    queues = lab.balancer.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout.splitlines()
    assert len(queues) == len(now.workers)
    assert sum(each.queue_drops + each.socket_drops for each in now.workers) == 0


def test_without_a_toml_file_nothing_is_saved(lab: Lab) -> None:
    backend = lab.backends[0].ipv4
    daemon = lab.start_daemon("--vip", "192.0.2.50", "--backend", backend, "--metrics", "").ready()
    said(lab, "add", "default", lab.backends[1].ipv4)
    *_, why = said(lab, "save", status=1)
    assert "start with -c FILE.toml" in why
    daemon.stop()
