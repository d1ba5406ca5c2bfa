"""A backend that fails: how soon others serve its clients, and what becomes of its connections."""

import sys
from collections.abc import Iterator

import pytest

from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIPS, Lab, Options, in_url
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until

#: Between two answers to a client that connects anew all the time, on a busy machine.
SERVED_MS = 1_000
LISTEN = 'listen = ["tcp/80", "tcp/7000"]'
#: Nobody is asked while a test lasts.
SELDOM = "[service.check]\nport = 80\ninterval_s = 60\nfast_interval_s = 0.1\ntimeout_s = 0.3\nrise = 2\n"
FAST = "[service.check]\nport = 80\ninterval_s = 0.3\ntimeout_s = 0.3\nrise = 2\nfall = 2\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=12)) as lab:
        yield lab


def start(lab: Lab, service: str, check: str = FAST) -> Daemon:
    return lab.daemon(lab.config(workers=2, service=f"{LISTEN}\n{service}\n{check}", checked=False))


class Pulse:
    """Clients that connect anew again and again."""

    def __init__(self, lab: Lab, vip: str) -> None:
        words = (sys.executable, "-m", "loaded_mp.lab.pulse", vip, *lab.sources(vip))
        self._process = lab.client.talk(*words)
        wait_until(lambda: 0 < self.longest_gap_ms() < SERVED_MS, "everybody is served")

    def longest_gap_ms(self) -> int:
        """The longest that a client was not served, since the last question."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.communicate(timeout=10)


@pytest.mark.alone
@pytest.mark.parametrize("vip", VIPS)
def test_what_workers_see_takes_a_silent_backend_down(lab: Lab, vip: str) -> None:
    daemon = start(lab, "[service.observe]\nsilent_ms = 150", SELDOM)
    pulse = Pulse(lab, vip)
    lab.switch.ip("link set to-backend2 down")
    address = lab.backends[1].ipv6 if ":" in vip else lab.backends[1].ipv4
    wait_until(lambda: not daemon.backends()[address].up, "it is down")
    wait_until(lambda: pulse.longest_gap_ms() < SERVED_MS, "everybody is served again")
    assert "got no answer for 150 ms" in daemon.backends()[address].cause
    lab.switch.ip("link set to-backend2 up")
    wait_until(lambda: daemon.backends()[address].up, "it is up again", 30)
    pulse.stop()
    daemon.stop()


@pytest.mark.alone
@pytest.mark.parametrize("vip", VIPS)
def test_what_workers_see_takes_a_refusing_backend_down(lab: Lab, vip: str) -> None:
    daemon = start(lab, "[service.observe]", SELDOM)
    rule = ["-p", "tcp", "--dport", "7000", "--syn", "-j", "REJECT", "--reject-with", "tcp-reset"]
    tool = "ip6tables" if ":" in vip else "iptables"
    pulse = Pulse(lab, vip)
    lab.backends[1].namespace.run(tool, "-I", "INPUT", *rule)
    address = lab.backends[1].ipv6 if ":" in vip else lab.backends[1].ipv4
    wait_until(lambda: "were refused" in daemon.log, "it was down")
    lab.backends[1].namespace.run(tool, "-D", "INPUT", *rule)
    wait_until(lambda: daemon.backends()[address].up, "it is up again", 30)
    pulse.stop()
    daemon.stop()


@pytest.mark.alone
@pytest.mark.parametrize("vip", VIPS)
def test_what_workers_see_takes_a_backend_down_that_accepts_and_resets(lab: Lab, vip: str) -> None:
    daemon = start(lab, "[service.observe]", SELDOM)
    rule = ["-p", "tcp", "--dport", "7000", "--tcp-flags", "PSH", "PSH", "-j", "REJECT"]
    rule += ["--reject-with", "tcp-reset"]
    tool = "ip6tables" if ":" in vip else "iptables"
    lab.backends[1].namespace.run(tool, "-I", "INPUT", *rule)
    address = lab.backends[1].ipv6 if ":" in vip else lab.backends[1].ipv4
    for source in lab.sources(vip):
        Line(lab.client, vip, source).ask()
    wait_until(lambda: "were reset before any data came" in daemon.log, "it was down")
    lab.backends[1].namespace.run(tool, "-D", "INPUT", *rule)
    wait_until(lambda: daemon.backends()[address].up, "it is up again", 30)
    daemon.stop()


@pytest.mark.parametrize(
    ("vip", "on_down", "heard"),
    [(VIPS[0], "move", "reset"), (VIPS[1], "reset", "reset"), (VIPS[0], "keep", "backend2 hello")],
)
def test_connections_of_a_backend_that_is_down(lab: Lab, vip: str, on_down: str, heard: str) -> None:
    daemon = start(lab, f'on_down = "{on_down}"')
    lines = [Line(lab.client, vip, source) for source in lab.sources(vip)[:6]]
    homes = [line.ask().split()[0] for line in lines]
    assert "backend2" in homes
    lab.backends[1].stop_web()
    address = lab.backends[1].ipv6 if ":" in vip else lab.backends[1].ipv4
    wait_until(lambda: not daemon.backends()[address].up, "backend2 is down")
    for line, home in zip(lines, homes, strict=True):
        assert line.ask() == (heard if home == "backend2" else f"{home} hello")
    lab.backends[1].start_web()
    wait_until(lambda: daemon.backends()[address].up, "backend2 is up")
    daemon.stop()


@pytest.mark.parametrize("forwarding", ["rewrite", "conntrack"])
@pytest.mark.parametrize("vip", VIPS)
def test_while_all_are_down_clients_are_rejected(lab: Lab, vip: str, forwarding: str) -> None:
    daemon = start(lab, f'forwarding = "{forwarding}"\nall_down = "reject"')
    for backend in lab.backends:
        backend.stop_web()
    wait_until(lambda: not any(each.up for each in daemon.backends().values()), "all are down")
    done = lab.client.run("curl", "-sg", "-m", "5", f"http://{in_url(vip)}/", check=False)
    assert done.returncode == 7, "connection refused"
    for backend in lab.backends:
        backend.start_web()
    wait_until(lambda: all(each.up for each in daemon.backends().values()), "all are up")
    assert lab.client.run("curl", "-sg", "-m", "5", f"http://{in_url(vip)}/").stdout.startswith("backend")
    daemon.stop()
