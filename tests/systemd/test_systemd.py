"""The shipped unit under a real systemd: what clients notice of a restart, a kill and a hang is nothing."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from systemd.machine import Machine, booted, missing

from loaded_mp.lab.clients import KINDS
from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options
from loaded_mp.lab.talk import Clients, Talk
from loaded_mp.lab.wait import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(missing()), reason=f"no systemd of its own: {missing()}"),
]

SOURCES = 60
BIG_MIB = 1
CONFIG = "/etc/loaded-mp/loaded-mp.toml"
UNIT = "/etc/systemd/system/loaded-mp.service"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        lab.big_file(BIG_MIB)
        yield lab


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with booted(lab, loaded_mp()) as machine:
        machine.write(f"{UNIT}.d/soon.conf", "[Service]\nWatchdogSec=4\nTimeoutStopSec=6\n")
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture
def forwarding() -> str:
    return "rewrite"


@pytest.fixture
def goodbye_s() -> float:
    return 1.0


@pytest.fixture
def config(lab: Lab, forwarding: str, goodbye_s: float) -> str:
    service = f'forwarding = "{forwarding}"'
    return lab.config((3, 2, 1), workers=2, top=f"goodbye_s = {goodbye_s}", service=service)


@pytest.fixture
def running(machine: Machine, config: str) -> Iterator[Machine]:
    """With the service running."""
    machine.write(CONFIG, config)
    machine.run("systemctl", "start", "loaded-mp")
    yield machine
    machine.run("systemctl", "stop", "loaded-mp")
    assert not machine.processes()


def restart(machine: Machine) -> None:
    machine.run("systemctl", "restart", "loaded-mp")


def again(machine: Machine, disturb: str) -> None:
    """Disturb the supervisor by a signal; systemd starts it again."""
    before = machine.show("MainPID")
    machine.run("kill", disturb, before)
    wait_until(
        lambda: machine.show("MainPID") not in (before, "0") and machine.show("ActiveState") == "active",
        f"a new supervisor after {disturb}",
        60.0,
    )


def kill(machine: Machine) -> None:
    again(machine, "-KILL")


def hang(machine: Machine) -> None:
    again(machine, "-STOP")


class Ping:
    """A ping of a VIP every 10 ms."""

    def __init__(self, lab: Lab, vip: str) -> None:
        self._process = lab.client.talk("ping", "-D", "-i", "0.01", vip)

    def stop(self) -> tuple[list[int], float]:
        """The numbers that were not answered, but for those on their way; the longest gap in milliseconds."""
        self._process.send_signal(signal.SIGINT)
        said, _ = self._process.communicate(timeout=10)
        answers = re.findall(r"^\[([\d.]+)\] .* icmp_seq=(\d+) .* time=", said, re.MULTILINE)
        assert len(answers) > 20
        numbers = {int(number) for _, number in answers}
        times_s = [float(at_s) for at_s, _ in answers]
        lost = sorted(set(range(1, max(numbers))) - numbers)
        return lost, 1000 * max(b - a for a, b in pairwise(times_s))


def test_journald_knows_the_values_of_an_event(running: Machine) -> None:
    running.run("loaded-mp", "drain", "backend2")
    words = ("journalctl", "SERVICE=web", "BACKEND=backend2", "-o", "json", "--no-pager", "-n", "1")
    entry = json.loads(wait_until(lambda: running.run(*words).stdout, "it is in the journal"))
    assert entry["MESSAGE"].startswith(f"event={entry['EVENT']} service=web backend=backend2")
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("6", "loaded-mp")
    assert entry["_SYSTEMD_UNIT"] == "loaded-mp.service"
    running.run("loaded-mp", "ready", "backend2")


@pytest.mark.parametrize(
    ("disturb", "cause", "forwarding"),
    [
        (restart, "event=leaving", "rewrite"),
        (restart, "event=leaving", "conntrack"),
        (kill, "status=9/KILL", "rewrite"),
        (hang, "Watchdog timeout", "rewrite"),
    ],
)
def test_nobody_notices(
    lab: Lab, running: Machine, disturb: Callable[[Machine], None], cause: str, forwarding: str
) -> None:
    homes = {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS}
    before, rules = running.processes(), lab.balancer.run("iptables-save").stdout.count("LOADED")
    clients = [Clients(lab, vip, BIG_MIB) for vip in VIPS]
    pings = [Ping(lab, vip) for vip in VIPS]
    logged = len(running.log())
    disturb(running)
    after = running.processes()
    for text in (cause, "event=handed-over workers=2"):
        running.logged(text, logged)
    heard = [each.stop() for each in pings]
    lab.let_backends_speak()
    served = [each.served() for each in clients]
    print(f"{disturb.__name__}, {forwarding}: served {served}; pings lost, longest gap in ms: {heard}")
    assert served == [f"{KINDS * SOURCES} []"] * len(VIPS), running.log()[logged:]
    assert [lost for lost, _ in heard] == [[], []]
    assert max(gap_ms for _, gap_ms in heard) < 300
    assert {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS} == homes
    assert before.keys().isdisjoint(after)
    assert lab.balancer.run("iptables-save").stdout.count("LOADED") == rules
    assert "Traceback" not in running.log()
    assert "event=vip-not-announced" not in running.log()


def test_many_restarts_leave_what_one_leaves(lab: Lab, running: Machine) -> None:
    def figures() -> tuple[int, int, int]:
        files = running.run("ls", f"/proc/{running.show('MainPID')}/fd").stdout.split()
        rules = lab.balancer.run("iptables-save").stdout.count("LOADED")
        return len(files), len(running.processes()), rules

    restart(running)
    first = figures()
    for _ in range(3):
        restart(running)
    # For a moment there may be a connection more.
    wait_until(lambda: figures() == first, "as after the first")


def test_commands_wait_for_a_restart(machine: Machine, running: Machine) -> None:
    restarting = subprocess.Popen(machine.command("systemctl", "restart", "loaded-mp"))
    asked = 0
    while restarting.poll() is None:
        assert "backend1" in machine.run("loaded-mp", "status").stdout
        asked += 1
    assert restarting.returncode == 0
    assert asked


def test_workers_have_a_user_of_their_own(running: Machine) -> None:
    supervisor = running.show("MainPID")
    workers = {pid: user for pid, user in running.processes().items() if pid != supervisor}
    assert [*workers.values()] == ["loaded-mp", "loaded-mp"]
    assert "event=user-shared" not in running.log()


def test_a_bad_file_is_refused_and_service_goes_on(lab: Lab, running: Machine, config: str) -> None:
    talks = [Talk(lab, vip, lab.sources(vip)[0]) for vip in VIPS]
    homes = [talk.ask() for talk in talks]
    before = running.processes()
    running.write(CONFIG, config.replace("weight = 1", "weight = -1"))
    assert running.run("systemctl", "reload", "loaded-mp", check=False).returncode
    assert running.processes() == before
    assert running.show("ActiveState") == "active"
    assert [talk.ask() for talk in talks] == homes
    # A restart fails too, but the workers go on with what they know.
    assert running.run("systemctl", "restart", "loaded-mp", check=False).returncode
    assert [talk.ask() for talk in talks] == homes
    running.write(CONFIG, config)
    running.run("systemctl", "start", "loaded-mp")
    assert [talk.ask() for talk in talks] == homes


@pytest.mark.parametrize("goodbye_s", [8.0])
def test_a_stop_tells_both_ends_and_takes_everything_away(lab: Lab, running: Machine) -> None:
    """Also if it takes longer than the unit grants."""
    talks = [Talk(lab, vip, source) for vip in VIPS for source in lab.sources(vip)[:6]]
    assert {talk.ask() for talk in talks} == {"backend1", "backend2", "backend3"}
    logged = len(running.log())
    stopping = subprocess.Popen(running.command("systemctl", "stop", "loaded-mp"))
    wait_until(lambda: running.show("ActiveState") == "deactivating", "the stop has begun")
    running.logged("event=stopping", logged)
    for talk in talks:
        talk.say()
    assert [talk.hear() for talk in talks] == ["reset"] * len(talks)
    assert stopping.wait(30) == 0
    assert running.show("Result") == "success"
    assert not running.processes()
    for tool in ("iptables-save", "ip6tables-save"):
        assert "LOADED" not in lab.balancer.run(tool).stdout
    assert not any(vip in lab.balancer.run("ip", "address").stdout for vip in VIPS)
    assert running.run("ls", "/run/loaded-mp").stdout == ""


@pytest.mark.parametrize("goodbye_s", [5.0])
def test_a_supervisor_that_dies_within_a_stop_leaves_nothing(lab: Lab, running: Machine) -> None:
    supervisor = running.show("MainPID")
    logged = len(running.log())
    stopping = subprocess.Popen(running.command("systemctl", "stop", "loaded-mp"))
    running.logged("event=stopping", logged)
    running.run("kill", "-KILL", supervisor)
    assert stopping.wait(30) == 0
    assert running.show("Result") == "signal"
    assert not running.processes()
    assert "LOADED" not in lab.balancer.run("iptables-save").stdout


def test_one_that_became_another_program_is_watched_too(running: Machine) -> None:
    before = running.show("MainPID")
    running.run("loaded-mp", "restart")
    fed = set[str]()

    def twice() -> bool:
        fed.add(running.show("WatchdogTimestampMonotonic"))
        return len(fed) > 2

    wait_until(twice, "the watchdog is fed")
    assert running.show("MainPID") == before
    assert running.show("NRestarts") == "0"


@pytest.mark.parametrize("goodbye_s", [5.0])
def test_one_killed_in_its_goodbye_says_no_more_of_it(lab: Lab, running: Machine) -> None:
    talks = [Talk(lab, vip, lab.sources(vip)[0]) for vip in VIPS]
    supervisor = running.show("MainPID")
    logged = len(running.log())
    running.run("kill", "-TERM", supervisor)
    running.logged("event=stopping", logged)
    running.run("kill", "-KILL", supervisor)
    wait_until(lambda: running.show("MainPID") not in (supervisor, "0"), "another supervisor", 20.0)
    wait_until(lambda: running.show("ActiveState") == "active", "it serves", 20.0)
    assert "reset" not in [talk.ask() for talk in talks]
