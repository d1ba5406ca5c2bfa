"""What others than root may take of the daemon: little, and nothing that clients notice."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.wait import wait_until

#: More than a process may have descriptors by default.
CONNECTIONS = 1031
MOST_DESCRIPTORS = 200  #: of the daemon, whatever arrives
METRICS = ("curl", "-sfS", "-m", "5", "http://127.0.0.1:9128/metrics")

#: As user nobody: opens so many connections, says how many, holds them and opens again what is closed.
HOLD = f"""
import os, resource, select, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def opened():
    while True:
        connection = socket.socket(FAMILY)
        connection.settimeout(5)
        try:
            connection.connect(ADDRESS)
        except OSError:
            connection.close()
            time.sleep(0.01)
        else:
            poll.register(connection, select.POLLIN)
            return connection
poll = select.poll()
held = {{each.fileno(): each for each in (opened() for _ in range({CONNECTIONS}))}}
print(len(held), flush=True)
while True:
    for descriptor, _ in poll.poll():
        poll.unregister(descriptor)
        held.pop(descriptor).close()
        new = opened()
        held[new.fileno()] = new
"""
#: As user nobody: what `loaded-mp status` asks.
ASK = """
import os
from loaded_mp.control.client import ControlError, ask
os.setuid(65534)
try:
    print(ask("status", object))
except ControlError as error:
    print(error)
"""
TARGETS = ("control", "metrics")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=10)) as lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config().replace('metrics_listen = ""\n', ""))
    yield daemon
    daemon.stop()


def socket_of(lab: Lab) -> Path:
    inode = os.stat(f"/run/netns/{lab.balancer.name}").st_ino
    return Path(f"/run/loaded-mp/{inode}.socket")


@contextmanager
def held(lab: Lab, target: str) -> Iterator[None]:
    """Connections of nobody, as long as the context lasts."""
    family, address = "socket.AF_INET", '("127.0.0.1", 9128)'
    if target == "control":
        family, address = "socket.AF_UNIX", f'"{socket_of(lab)}"'
    program = HOLD.replace("FAMILY", family).replace("ADDRESS", address)
    process = lab.balancer.talk(sys.executable, "-c", program)
    try:
        assert process.stdout
        assert process.stdout.readline() == f"{CONNECTIONS}\n"
        yield
    finally:
        process.kill()
        process.communicate()


def nobody_asks(lab: Lab) -> str:
    return lab.balancer.run(sys.executable, "-c", ASK).stdout.strip()


@pytest.mark.parametrize("target", TARGETS)
def test_connections_of_nobody_take_nothing_from_anybody(lab: Lab, daemon: Daemon, target: str) -> None:
    if target == "control":
        socket_of(lab).chmod(0o666)  # let them in as far as that goes
    checks = {address: each.since_s for address, each in daemon.backends().items()}
    with held(lab, target):
        socket_of(lab).chmod(0o600)
        assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < MOST_DESCRIPTORS
        answers = lab.answers("http", VIP4, 50, lab.sources4)
        assert not [text for texts in answers.values() for text in texts if text.startswith("error")]
        assert all(each.up for each in daemon.backends().values())
    assert wait_until(lambda: lab.balancer.run(*METRICS, check=False).stdout, "/metrics is free again", 20)
    assert all(each.since_s > checks[address] for address, each in daemon.backends().items())
    warned = re.findall(r"event=connections-\S+ server=(\S+)", daemon.log)
    assert warned == [target]
    assert "Traceback" not in daemon.log


def test_others_than_root_are_told_what_to_do(lab: Lab, daemon: Daemon) -> None:
    said = "only root, and the group that is set as control_group, may talk to the daemon; use sudo"
    assert nobody_asks(lab) == said
    assert "connections-refused" not in daemon.log  # did not get so far
    socket_of(lab).chmod(0o666)
    assert nobody_asks(lab) == said
    assert 'event=connections-refused server=control cause="user 65534 is not root"' in daemon.log


def test_nothing_of_the_control_socket_is_left(lab: Lab, daemon: Daemon) -> None:
    path = socket_of(lab)
    assert path.exists()
    daemon.stop()
    assert not list(path.parent.glob(f"{path.stem}*"))
