"""Clients that come and go, the same for IPVS as for loaded-mp, and what IPVS made of them.

python tests/bench/arrivals.py FOLDER lets IPVS choose, and writes FOLDER/ipvs.json. It takes the machine that
it runs on for its own, a guest: see ipvs.py, which compares.
"""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

PORT = 80
#: Rounds of arrivals and ends.
_ROUNDS = 12
_DEADLINE_S = 20.0
#: Clients of the hashing schedulers, and VIPs of those that hash these.
HASHED = 2_000
VIPS_HASHED = 240
HASH_BACKENDS = 10


@dataclass(frozen=True)
class Case:
    """One virtual service."""

    name: str
    scheduler: str
    weights: tuple[int, ...]
    limits: tuple[tuple[int, int], ...] = ()  #: most and fewest flows of each backend; empty: none
    several: int = 1  #: VIPs
    vips: tuple[str, ...] = field(default=(), compare=False)

    def backend(self, place: int) -> str:
        """The address of a backend."""
        return f"10.0.0.{place + 1}"


class Client(NamedTuple):
    """One connection."""

    address: str
    port: int
    vip: int  #: which of the service's


class Round(NamedTuple):
    """Who comes, one after another, and then which connections end, as numbers of arrivals."""

    come: list[Client]
    go: list[int]


_WEIGHTS = {"equal": (1, 1, 1, 1), "mixed": (5, 3, 2, 1), "large": (7, 20, 4, 12)}
_LIMITS = ((6, 3), (4, 0), (9, 8), (0, 0))


def _cases() -> Iterator[Case]:
    for scheduler in ("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf"):
        for name, weights in _WEIGHTS.items():
            yield Case(f"{scheduler}, {name} weights", scheduler, weights)
        yield Case(f"{scheduler}, limits", scheduler, _WEIGHTS["mixed"], _LIMITS)
    for scheduler in ("lblc", "lblcr"):
        for name, weights in _WEIGHTS.items():
            yield Case(f"{scheduler}, {name} weights", scheduler, weights, several=3)


def _with_vips(cases: Iterator[Case]) -> tuple[Case, ...]:
    numbered = []
    at = 1
    for case in cases:
        vips = tuple(f"192.0.2.{at + each}" for each in range(case.several))
        numbered.append(Case(case.name, case.scheduler, case.weights, case.limits, case.several, vips))
        at += case.several
    return tuple(numbered)


CASES = _with_vips(_cases())
_EVEN = (1,) * HASH_BACKENDS
HASHING = (
    Case("sh", "sh", _EVEN, vips=("192.0.3.1",)),
    Case("mh", "mh", _EVEN, vips=("192.0.3.2",)),
    Case("dh", "dh", _EVEN, (), VIPS_HASHED, tuple(f"192.0.4.{n + 1}" for n in range(VIPS_HASHED))),
)


def plan(case: Case) -> list[Round]:
    """What happens to a service; the same each time. Whoever goes came before, and goes once.

    No two services have the same client port, as a backend's answer does not say to which it belongs.
    """
    chance = random.Random(case.name)
    rounds: list[Round] = []
    there: list[int] = []
    came, first_port = 0, 1_024 + 100 * CASES.index(case)
    for _ in range(_ROUNDS):
        come = []
        for _ in range(chance.randint(1, 8)):
            address = f"198.51.{came // 250}.{came % 250 + 1}"
            come.append(Client(address, first_port + came, chance.randrange(case.several)))
            there.append(came)
            came += 1
        go = chance.sample(there, chance.randint(0, len(there) * 2 // 3))
        there = [each for each in there if each not in go]
        rounds.append(Round(come, go))
    return rounds


def hashed_clients(case: Case, turn: int) -> list[Client]:
    """Connections whose addresses are the same in each turn."""
    if case.several > 1:
        return [Client("198.51.0.1", 2_000 + 500 * turn + vip, vip) for vip in range(case.several)]
    return [
        Client(f"198.{52 + n // 62_500}.{n // 250 % 250}.{n % 250 + 1}", 2_000 + turn, 0)
        for n in (each * 37 for each in range(HASHED))
    ]


class Ipvs:
    """IPVS of this machine, with a link to clients and one to backends, both driven here."""

    def __init__(self) -> None:
        for end, addresses in (("c", "198.48.0.0/12"), ("b", "10.0.0.0/24")):
            _run(f"ip link add {end}0 type veth peer name {end}1")
            for each in (f"{end}0", f"{end}1"):
                _run(f"ip link set {each} arp off up")
            _run(f"ip route add {addresses} dev {end}1")
        for name in ("net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"):
            _run(f"sysctl -qw {name}={int(name.endswith('forward'))}")
        _run("ipvsadm --set 900 1 300")  # ended connections are forgotten after a second
        self._links = {end: _Link(end) for end in ("c", "b")}

    def add(self, number: int, case: Case) -> None:
        """Let a service be there. IPVS puts each backend before those that it has."""
        for vip in case.vips:
            _run(f"ip address add {vip}/32 dev lo")
            if case.several > 1:
                _run(f"iptables-legacy -t mangle -A PREROUTING -d {vip} -j MARK --set-mark {number + 1}")
        service, port = _named(number, case)
        _run(f"ipvsadm -A {service} -s {case.scheduler}")
        for place in reversed(range(len(case.weights))):
            most, fewest = case.limits[place] if case.limits else (0, 0)
            limits = f"-x {most} -y {fewest}" if most else ""
            _run(f"ipvsadm -a {service} -r {case.backend(place)}{port} -m -w {case.weights[place]} {limits}")

    def remove_backend(self, number: int, case: Case, place: int) -> None:
        """Take a backend of a service away."""
        service, port = _named(number, case)
        _run(f"ipvsadm -d {service} -r {case.backend(place)}{port}")

    def come(self, case: Case, clients: list[Client]) -> None:
        """Let connections be begun."""
        for each in clients:
            for flags, ack in (("S", 0), ("A", 1)):
                segment = TCP(sport=each.port, dport=PORT, flags=flags, seq=1 + ack, ack=ack)
                self._links["c"].send(IP(src=each.address, dst=case.vips[each.vip]) / segment)

    def go(self, case: Case, client: Client, place: int) -> None:
        """Let a backend end a connection."""
        segment = TCP(sport=PORT, dport=client.port, flags="FA", seq=1, ack=2)
        self._links["b"].send(IP(src=case.backend(place), dst=client.address) / segment)

    def connections(self) -> dict[tuple[str, int, str], int]:
        """The place of the backend of each connection, by client, port and VIP."""
        found = {}
        for line in Path("/proc/net/ip_vs_conn").read_text().splitlines()[1:]:
            _, client, port, vip, _, backend, *_ = line.split()
            found[_dotted(client), int(port, 16), _dotted(vip)] = int(backend, 16) - 0x0A000001
        return found


class _Link:
    """Our end of a link to this machine's network."""

    def __init__(self, end: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((f"{end}0", 0))
        there, here = (Path(f"/sys/class/net/{end}{n}/address").read_text().strip() for n in (1, 0))
        self._header = Ether(dst=there, src=here)

    def send(self, packet: Any) -> None:
        self._socket.send(bytes(self._header / packet))


def _named(number: int, case: Case) -> tuple[str, str]:
    """How ipvsadm is told of a service, and the port behind its backends. Several VIPs are one by a mark."""
    return (f"-f {number + 1}", "") if case.several > 1 else (f"-t {case.vips[0]}:{PORT}", f":{PORT}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def _dotted(number: str) -> str:
    return socket.inet_ntoa(bytes.fromhex(number))


def _wait(ipvs: Ipvs, holds: Any, what: str) -> dict[tuple[str, int, str], int]:
    """The connections once something holds of them."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while True:
        found = ipvs.connections()
        if holds(found):
            return found
        if time.monotonic() > deadline_s:
            raise TimeoutError(what)
        time.sleep(0.05)


def _counted(ipvs: Ipvs) -> dict[str, list[list[int | None]]]:
    """The choices of each round, for each case; None: nobody got the connection."""
    plans = {case.name: plan(case) for case in CASES}
    chosen: dict[str, list[list[int | None]]] = {case.name: [] for case in CASES}
    came: dict[str, list[tuple[Client, int | None]]] = {case.name: [] for case in CASES}
    last = CASES[0]  # takes every connection, so that all before it were decided when it is there
    for number in range(_ROUNDS):
        for case in reversed(CASES):
            ipvs.come(case, plans[case.name][number].come)
        final = plans[last.name][number].come[-1]
        key = (final.address, final.port, last.vips[final.vip])
        found = _wait(ipvs, lambda found, key=key: key in found, f"round {number} came")
        gone = set()
        for case in CASES:
            now = plans[case.name][number]
            got = [found.get((each.address, each.port, case.vips[each.vip])) for each in now.come]
            chosen[case.name].append(got)
            came[case.name] += zip(now.come, got, strict=True)
            for each in now.go:
                client, place = came[case.name][each]
                if place is not None:
                    ipvs.go(case, client, place)
                    gone.add((client.address, client.port, case.vips[client.vip]))
        _wait(ipvs, lambda found, gone=gone: not gone & found.keys(), f"round {number} went")
    return chosen


def _hashed(ipvs: Ipvs) -> dict[str, list[list[int | None]]]:
    """The choices of three turns, the last of which without the first backend, for each case."""
    chosen: dict[str, list[list[int | None]]] = {case.name: [] for case in HASHING}
    for turn in range(3):
        for number, case in enumerate(HASHING, len(CASES)):
            if turn == 2:
                ipvs.remove_backend(number, case, 0)
            clients = hashed_clients(case, turn)
            for first in range(0, len(clients), 200):
                ipvs.come(case, clients[first : first + 200])
            keys = [(each.address, each.port, case.vips[each.vip]) for each in clients]
            try:
                found = _wait(ipvs, lambda found, keys=keys: found.keys() >= set(keys), f"{case.name} came")
            except TimeoutError:
                found = ipvs.connections()
            chosen[case.name].append([found.get(key) for key in keys])
    return chosen


def main(folder: Path) -> None:
    """Let IPVS choose."""
    ipvs = Ipvs()
    for number, case in enumerate((*CASES, *HASHING)):
        ipvs.add(number, case)
    found = {"kernel": os.uname().release, "counted": _counted(ipvs), "hashed": _hashed(ipvs)}
    (folder / "ipvs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
