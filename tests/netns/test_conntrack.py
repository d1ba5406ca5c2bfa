"""Services that the kernel forwards after a worker's decision: the same behaviour, by other means."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options, in_url
from loaded_mp.lab.talk import Talk
from loaded_mp.lab.wait import wait_until

SOURCES = 60
EXPECTED = {"backend1": 30, "backend2": 20, "backend3": 10}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config((3, 2, 1), workers=2, service='forwarding = "conntrack"'))
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("vip", VIPS)
def test_sources_spread_by_weight_and_stay(lab: Lab, daemon: Daemon, vip: str) -> None:
    sources = lab.sources(vip)
    answers = lab.answers("http", vip, 5, sources)
    home = {source: names[0] for source, names in answers.items()}
    assert answers == {source: [home[source]] * 5 for source in sources}
    assert Counter(home.values()) == EXPECTED
    assert lab.answers("dns", vip, 2, sources) == {source: [home[source]] * 2 for source in sources}
    assert "2 received" in lab.client.run("ping", "-c", "2", "-i", "0.1", "-I", sources[0], vip).stdout


@pytest.mark.parametrize("vip", VIPS)
def test_traffic_is_counted_by_backend_though_workers_see_little(lab: Lab, daemon: Daemon, vip: str) -> None:
    checksum = lab.big_file(50)
    command = f"curl -sgf http://{in_url(vip)}/big | sha256sum"
    assert lab.client.run("sh", "-c", command).stdout.split()[0] == checksum
    (served,) = (address for address, each in daemon.backends().items() if each.counters["new_flows"])
    wait_until(lambda: daemon.backends()[served].counters["to_client_bytes"] > 50 << 20, "bytes are counted")
    assert daemon.backends()[served].counters["to_backend_packets"] > 0
    assert sum(worker.counters["packets"] for worker in daemon.status().workers) < 20


def is_counted(daemon: Daemon, packets: int) -> bool:
    """Whether one backend has got and sent so many packets, and no other any."""
    counters = [each.counters for each in daemon.backends().values()]
    return all(
        sorted(each[f"{direction}_packets"] for each in counters)[-2:] == [0, packets]
        for direction in ("to_backend", "to_client")
    )


@pytest.mark.long
def test_counters_go_on_after_reloads(lab: Lab) -> None:
    path = lab.folder / "growing.toml"
    config = lab.config(service='forwarding = "conntrack"', checked=False)
    other = '[[service]]\nname = "other"\nvips = ["192.0.2.77"]\nforwarding = "conntrack"\n'
    path.write_text(config)
    daemon = lab.start_daemon("-c", str(path)).ready()
    sent = 0
    for backends in (100, 1):
        lab.client.run("ping", "-c", "3", "-i", "0.05", "-I", lab.sources4[0], VIPS[0])
        sent += 3
        wait_until(partial(is_counted, daemon, sent), f"{sent} packets are counted each way")
        more = "".join(f'[[service.backend]]\naddress = "10.0.0.{100 + n}"\n' for n in range(backends))
        path.write_text(config + other + more)
        lab.balancer.run(loaded_mp(), "reload")
    daemon.stop()
    assert "LOADED-" not in lab.balancer.run("iptables-save").stdout


def is_reset(talk: Talk) -> bool:
    return talk.ask() == "reset"


@pytest.mark.parametrize("vip", VIPS)
def test_a_backend_that_goes_takes_its_connections_along(lab: Lab, daemon: Daemon, vip: str) -> None:
    talks = {source: Talk(lab, vip, source) for source in lab.sources(vip)[:6]}
    homes = {source: talk.ask() for source, talk in talks.items()}
    assert set(homes.values()) == {"backend1", "backend2", "backend3"}
    with lab.backends[1].refusing():
        wait_until(lambda: not daemon.backends()[lab.backends[1].ipv4].up, "backend2 is down")
        wait_until(lambda: not daemon.backends()[lab.backends[1].ipv6].up, "backend2 is down")
        for source, home in homes.items():
            if home == "backend2":
                wait_until(partial(is_reset, talks[source]), "its connections are forgotten")
            else:
                assert talks[source].ask() == home
        moved = {source for source, home in homes.items() if home == "backend2"}
        names = {name for answers in lab.answers("dns", vip, 1, sorted(moved)).values() for name in answers}
        assert names <= {"backend1", "backend3"}


@pytest.mark.parametrize("vip", VIPS)
def test_connections_outlive_the_daemon(lab: Lab, vip: str) -> None:
    config = lab.config((3, 2, 1), workers=2, service='forwarding = "conntrack"')
    daemon = lab.daemon(config)
    talks = [Talk(lab, vip, source) for source in lab.sources(vip)[:6]]
    homes = [talk.ask() for talk in talks]
    daemon.stop()
    daemon = lab.daemon(config)
    assert [talk.ask() for talk in talks] == homes
    daemon.stop()
