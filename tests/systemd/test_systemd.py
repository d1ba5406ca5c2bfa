"""The shipped unit under a real systemd: what clients notice of a restart, a kill and a hang is nothing."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from systemd.machine import Machine, booted, missing

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options
from loaded_mp.lab.wait import wait_until

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no systemd of its own: {missing()}")

#: Connections of each kind in each family.
KINDS = {"down": 250, "idle": 250, "up": 60, "push": 60}
SOURCES = 100
PORT = 7000
CONFIG = "/etc/loaded-mp/loaded-mp.toml"

#: Server and client. Numbered blocks go to the client ("down" as fast as it reads, "push" now and then) or to the
#: server ("up"), or nothing goes ("idle"), until the client says "end"; then the server says how many it got.
TRAFFIC = """
import asyncio, json, socket, sys
def block(text, kind):
    return b"%16s" % text * (256 if kind in ("down", "up") else 1)
async def send(writer, kind, over, pause_s):
    sent = 0
    while not over.is_set():
        writer.write(block(b"%d" % sent, kind))
        sent += 1
        await writer.drain()
        await asyncio.sleep(pause_s)
    return sent
async def receive(reader, kind, over, pause_s):
    got = 0
    while (found := await reader.readexactly(len(block(b"", kind)))) != block(b"end", kind):
        assert found == block(b"%d" % got, kind), (found, got)
        got += 1
        if not over.is_set():
            await asyncio.sleep(pause_s)
    return got
async def serve(reader, writer):
    kind = (await reader.readline()).decode().strip()
    over = asyncio.Event()
    writer.write(b"begun\\n")
    pause_s = {"down": 0.0, "push": 0.1}.get(kind)
    sending = None if pause_s is None else asyncio.create_task(send(writer, kind, over, pause_s))
    got = await receive(reader, kind, over, 0.0)
    over.set()
    if sending:
        await sending
    writer.write(block(b"end", kind) + b"%d\\n" % got)
    await writer.drain()
    writer.close()
def small(address):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, option, 16384)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, PORT if role == "server" else 0))
    made.setblocking(False)
    return made
async def server(addresses):
    servers = [await asyncio.start_server(serve, sock=small(each), backlog=1000) for each in addresses]
    print("listens", flush=True)
    await asyncio.gather(*(each.serve_forever() for each in servers))
async def one(vip, source, kind, begun, over):
    mine = small(source)
    await asyncio.get_running_loop().sock_connect(mine, (vip, PORT))
    reader, writer = await asyncio.open_connection(sock=mine, limit=4096)
    writer.write(kind.encode() + b"\\n")
    assert await reader.readline() == b"begun\\n"
    begun.release()
    receiving = asyncio.create_task(receive(reader, kind, over, 0.2))
    sent = await send(writer, kind, over, 0.2) if kind == "up" else 0
    await over.wait()
    writer.write(block(b"end", kind))
    got = await receiving
    assert int(await reader.readline()) == sent
    assert got > 0 or kind not in ("down", "push")
    writer.close()
async def client(vip, kinds, sources):
    begun, over = asyncio.Semaphore(0), asyncio.Event()
    wanted = [kind for kind, count in kinds.items() for _ in range(count)]
    of = lambda number: sources[number % len(sources)]
    tasks = [asyncio.create_task(one(vip, of(n), kind, begun, over)) for n, kind in enumerate(wanted)]
    for _ in wanted:
        await asyncio.wait_for(begun.acquire(), 30)
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    over.set()
    await asyncio.wait(tasks, timeout=60)
    said = [(kind, repr(task.exception()) if task.done() else "hangs") for kind, task in zip(wanted, tasks)]
    print(json.dumps([each for each in said if each[1] != "None"]), flush=True)
    sys.exit()
role, PORT, *rest = sys.argv[1:]
PORT = int(PORT)
asyncio.run(server(rest) if role == "server" else client(rest[0], json.loads(rest[1]), rest[2:]))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        for each in lab.backends:
            words = (sys.executable, "-c", TRAFFIC, "server", str(PORT), each.ipv4, each.ipv6)
            server = each.namespace.talk(*words)
            assert server.stdout
            assert server.stdout.readline() == "listens\n"
        yield lab


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with booted(lab, loaded_mp()) as machine:
        yield machine


@pytest.fixture
def config(lab: Lab) -> str:
    return lab.config((3, 2, 1), workers=2, top="goodbye_s = 2")


@pytest.fixture
def running(machine: Machine, config: str) -> Iterator[Machine]:
    """With the service running."""
    machine.write(CONFIG, config)
    machine.run("systemctl", "start", "loaded-mp")
    yield machine
    machine.run("systemctl", "stop", "loaded-mp")
    assert not machine.processes()


class Clients:
    """Connections of all kinds to a VIP, and what became of them."""

    def __init__(self, lab: Lab, vip: str) -> None:
        words = ("client", str(PORT), vip, json.dumps(KINDS), *lab.sources(vip))
        self._process = lab.client.talk(sys.executable, "-c", TRAFFIC, *words)
        assert self._process.stdout
        assert self._process.stdout.readline() == "begun\n"

    def broken(self) -> list[list[str]]:
        """Let all come to their ends; those that did not."""
        said, _ = self._process.communicate("\n", timeout=120)
        broken: list[list[str]] = json.loads(said)
        return broken


def restart(machine: Machine) -> None:
    machine.run("systemctl", "restart", "loaded-mp")
    assert "event=leaving" in machine.log()


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
    assert "atchdog timeout" in machine.log()


def longest_gap_ms(said: str) -> float:
    """Between two answers to a ping of every 10 ms."""
    times = [float(each) for each in re.findall(r"^\[([\d.]+)\].* time=", said, re.MULTILINE)]
    assert len(times) > 20
    return 1000 * max(b - a for a, b in pairwise(times))


@pytest.mark.parametrize("disturb", [restart, kill, hang])
def test_nobody_notices(
    lab: Lab, machine: Machine, config: str, running: Machine, disturb: Callable[[Machine], None]
) -> None:
    homes = {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS}
    before, rules = machine.processes(), lab.balancer.run("iptables-save").stdout.count("LOADED")
    clients = [Clients(lab, vip) for vip in VIPS]
    pings = [lab.client.talk("ping", "-D", "-i", "0.01", vip) for vip in VIPS]
    disturb(machine)
    after = machine.processes()
    wait_until(lambda: "event=handed-over workers=2" in machine.log(), "the start takes over")
    for ping in pings:
        ping.send_signal(signal.SIGINT)
    said = [ping.communicate(timeout=10)[0] for ping in pings]
    broken = [each.broken() for each in clients]
    gaps_ms = [longest_gap_ms(each) for each in said]
    print(f"{disturb.__name__}: broken {broken} of {KINDS} twice, longest gaps {gaps_ms} ms")
    assert broken == [[], []]
    assert all(" 0% packet loss" in each for each in said)
    assert max(gaps_ms) < 300
    assert {vip: lab.answers("http", vip, 1, lab.sources(vip)) for vip in VIPS} == homes
    assert before.keys().isdisjoint(after)
    assert lab.balancer.run("iptables-save").stdout.count("LOADED") == rules
    assert "Traceback" not in machine.log()
