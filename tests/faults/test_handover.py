"""A daemon that becomes another, or is killed and started again: what clients notice is nothing."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from loaded_mp.lab.backend import Backend
from loaded_mp.lab.clients import KINDS
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options, in_url
from loaded_mp.lab.talk import Clients, Talk
from loaded_mp.lab.wait import wait_until

SOURCES = 100
BIG_MIB = 1
HAND_OVERS = 50


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        lab.big_file(BIG_MIB)
        yield lab


def restart(lab: Lab, daemon: Daemon) -> Daemon:
    said = lab.balancer.run(loaded_mp(), "restart", timeout_s=120).stdout
    assert said.startswith("restarted: loaded-mp ")
    return daemon


def kill_and_start(lab: Lab, daemon: Daemon) -> Daemon:
    daemon.process.kill()
    daemon.process.wait(10)
    path = next(word for word in daemon.process.args if str(word).endswith(".toml"))  # type: ignore[union-attr]
    return lab.start_daemon("-c", str(path)).ready()


def longest_gap_ms(said: str) -> float:
    """Between two answers to a ping of every 10 ms."""
    times = [float(each) for each in re.findall(r"^\[([\d.]+)\].* time=", said, re.MULTILINE)]
    assert len(times) > 20
    return 1000 * max(b - a for a, b in pairwise(times))


@pytest.mark.alone
@pytest.mark.parametrize("again", [restart, kill_and_start])
@pytest.mark.parametrize("forwarding", ["rewrite", "conntrack"])
def test_connections_go_on(lab: Lab, forwarding: str, again: Callable[[Lab, Daemon], Daemon]) -> None:
    config = lab.config((3, 2, 1), workers=2, service=f'forwarding = "{forwarding}"')
    path = lab.folder / f"{forwarding}-{again.__name__}.toml"
    path.write_text(config)
    daemon = lab.start_daemon("-c", str(path)).ready()
    homes = {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS}
    clients = [Clients(lab, vip, BIG_MIB) for vip in VIPS]
    ping = lab.client.talk("ping", "-D", "-i", "0.01", VIPS[0])
    before = daemon.status()
    rules = lab.balancer.run("iptables-save").stdout.count("LOADED")
    daemon = again(lab, daemon)
    after = daemon.status()
    ping.send_signal(signal.SIGINT)
    said, _ = ping.communicate(timeout=10)
    lab.let_backends_speak()
    assert [each.served() for each in clients] == [f"{KINDS * SOURCES} []"] * len(VIPS)
    assert {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS} == homes
    assert " 0% packet loss" in said
    assert longest_gap_ms(said) < 300
    assert {each.pid for each in before.workers}.isdisjoint(each.pid for each in after.workers)
    assert lab.balancer.run("iptables-save").stdout.count("LOADED") == rules
    assert "Traceback" not in daemon.log
    daemon.stop()
    assert "LOADED" not in lab.balancer.run("iptables-save").stdout


def test_a_backend_that_was_down_stays_down(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(workers=2))
    lab.backends[1].stop_web()
    address = lab.backends[1].ipv4
    wait_until(lambda: not daemon.backends()[address].up, "backend2 is down")
    before = daemon.backends()[address]
    restart(lab, daemon)
    after = daemon.backends()[address]
    assert (after.up, after.cause) == (False, before.cause)
    assert after.since_s > before.since_s
    lab.backends[1].start_web()
    wait_until(lambda: daemon.backends()[address].up, "backend2 is up again")
    daemon.stop()


@pytest.mark.long
def test_many_hand_overs_leave_what_one_leaves(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(workers=2))
    pid = daemon.process.pid

    def figures() -> tuple[int, ...]:
        rules = lab.balancer.run("iptables-save").stdout.count("LOADED")
        return len(os.listdir(f"/proc/{pid}/fd")), len(lab.balancer.processes()), rules

    def memory_kib() -> int:
        said = lab.balancer.run("ps", "-o", "rss=", "-p", ",".join(map(str, lab.balancer.processes()))).stdout
        return sum(map(int, said.split()))

    restart(lab, daemon)
    first, first_kib = figures(), memory_kib()
    clients = [Clients(lab, vip, BIG_MIB) for vip in VIPS]
    for _ in range(HAND_OVERS):
        restart(lab, daemon)
    lab.let_backends_speak()
    assert [each.served() for each in clients] == [f"{KINDS * SOURCES} []"] * len(VIPS)
    assert figures() == first
    assert memory_kib() < 1.2 * first_kib
    daemon.stop()


@pytest.mark.long
@pytest.mark.parametrize("again", [restart, kill_and_start])
def test_another_number_of_workers_goes_on(lab: Lab, again: Callable[[Lab, Daemon], Daemon]) -> None:
    path = lab.folder / f"number-{again.__name__}.toml"
    path.write_text(lab.config(workers=2))
    daemon = lab.start_daemon("-c", str(path)).ready()
    clients = [Clients(lab, vip, BIG_MIB) for vip in VIPS]
    for workers in (3, 1):
        path.write_text(lab.config(workers=workers))
        daemon = again(lab, daemon)
        wait_until(lambda: len(daemon.status().workers) == workers, f"{workers} workers")  # noqa: B023
    lab.let_backends_speak()
    assert [each.served() for each in clients] == [f"{KINDS * SOURCES} []"] * len(VIPS)
    assert "event=started-afresh" not in daemon.log
    daemon.stop()


def test_what_does_not_fit_is_started_afresh_and_said(lab: Lab) -> None:
    path = lab.folder / "fits.toml"
    path.write_text(lab.config(workers=2))
    daemon = lab.start_daemon("-c", str(path)).ready()
    path.write_text(lab.config(workers=2, top="flows = 4096"))
    restart(lab, daemon)
    assert "event=started-afresh" in daemon.log
    assert daemon.status().flow_table.capacity == 4096
    assert "error" not in str(lab.answers("http", VIPS[0], 1, lab.sources4))
    daemon.stop()


def test_a_configuration_with_mistakes_keeps_the_old_program(lab: Lab) -> None:
    path = lab.folder / "mistaken.toml"
    path.write_text(lab.config(workers=2))
    daemon = lab.start_daemon("-c", str(path)).ready()
    for right, wrong in (("weight = 1", "weight = -1"), ('interface = "private"', 'interface = "privat"')):
        path.write_text(lab.config(workers=2).replace(right, wrong))
        refused = lab.balancer.run(loaded_mp(), "restart", check=False, timeout_s=120)
        assert refused.returncode == 1
        assert wrong.split()[-1].strip('"') in refused.stderr
        assert "the old program stays" in refused.stderr
    assert "event=restarting" not in daemon.log
    daemon.stop()


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("forwarding", ["rewrite", "conntrack"])
def test_a_stop_for_good_tells_both_ends(lab: Lab, vip: str, forwarding: str) -> None:
    service = f'forwarding = "{forwarding}"'
    daemon = lab.daemon(lab.config(workers=2, top="goodbye_s = 2", service=service))
    talks = [Talk(lab, vip, source) for source in lab.sources(vip)[:6]]
    assert {talk.ask() for talk in talks} == {"backend1", "backend2", "backend3"}
    daemon.process.terminate()
    daemon.logged("event=goodbye")
    for talk in talks:
        talk.say()
    assert [talk.hear() for talk in talks] == ["reset"] * 6
    wait_until(lambda: not any(established(backend) for backend in lab.backends), "backends know it")
    daemon.stop()


@pytest.mark.parametrize(("vip", "forwarding"), list(zip(VIPS, ["rewrite", "conntrack"], strict=True)))
def test_a_stop_for_good_tells_downloads(lab: Lab, vip: str, forwarding: str) -> None:
    """Their segments come in packets that the kernel cuts up again."""
    service = f'forwarding = "{forwarding}"'
    daemon = lab.daemon(lab.config(workers=2, top="goodbye_s = 2", service=service))
    lab.big_file(64)
    words = ("curl", "-sg", "-o", "/dev/null", "-m", "30", "--limit-rate", "4M", f"http://{in_url(vip)}/big")
    downloads = [lab.client.talk(*words) for _ in range(4)]
    wait_until(lambda: sum(len(established(backend)) for backend in lab.backends) >= 4, "they have begun")
    daemon.stop()
    assert [each.wait(3) for each in downloads] == [56] * 4, "connection reset by peer"
    lab.big_file(BIG_MIB)


def established(backend: Backend) -> list[str]:
    said = backend.namespace.run("ss", "-Htn", "state", "established", "sport", "=", ":80").stdout
    return said.splitlines()
