"""What schedulers and affinities cost, and how hashing ones spread.

python tests/bench/schedulers.py FOLDER writes schedulers.json there.
Each takes its turn in every round, directly after what it is compared with; a ratio is the median of these.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.paths import BACKEND_CORE, CLIENT_CORE
from bench.scale import VIP, decide_all, new_packet
from loaded_mp.config.model import Config
from loaded_mp.flows.atomics import Words
from loaded_mp.lab.lab import VIP4, VIP6, Lab, Options
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import Candidates
from loaded_mp.supervisor.backends import Backends

_ROUNDS = 31
_FLOWS = 100_000
_BACKENDS = 10
_SIZE = 65_537
Costs = dict[str, dict[str, float]]
AFFINITIES = ("source", "source/24", "connection", "none")


class Candidate:
    """A service whose packets are decided."""

    def __init__(
        self, scheduler: str, affinity: str = "source", backends: int = _BACKENDS, **more: int
    ) -> None:
        overflow = min(2 * _FLOWS // backends, 65_535)  # weights are flows there
        service: dict[str, Any] = {
            "name": "web",
            "vips": [".".join(map(str, VIP.to_bytes(4)))],
            "listen": ["udp"],
            "scheduler": scheduler,
            "affinity": affinity,
            "backends": [
                {
                    "address": f"10.0.{n // 250}.{n % 250 + 1}",
                    "weight": overflow if scheduler == "ovf" else n % 3 + 1,
                    **more,
                }
                for n in range(backends)
            ],
        }
        self.memory: SharedMemory = new_shared_memory(_FLOWS, 2)
        Backends(self.memory, Config.model_validate({"services": [service]})).fill(self.memory.snapshots[0])
        self._packet = new_packet()
        self._vips: Words = np.full(_FLOWS, VIP, np.uint64)
        self._sources = np.random.default_rng(1).permutation(_FLOWS).astype(np.uint64) * np.uint64(256)
        self._sources += np.uint64(0xC6120000)

    def forget(self) -> None:
        """No flow is there."""
        self.memory.table.words[:] = 0
        self.memory.active[:] = 0

    def decide(self) -> float:
        """Nanoseconds of a decision on a packet of each source."""
        started = time.perf_counter_ns()
        balanced = decide_all(self._packet, self._sources, self._vips, self.memory)
        took_ns = time.perf_counter_ns() - started
        if balanced != _FLOWS:
            raise RuntimeError(f"{_FLOWS - balanced} packets were not balanced")
        return took_ns / _FLOWS


def _beside(candidates: dict[str, Candidate], base: Candidate, first: bool = True) -> Costs:
    """Nanoseconds of each, its rate as a share of that of `base`; `first`: of packets that begin flows."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    shares: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(_ROUNDS + 1):
        for name, each in candidates.items():
            # One directly after the other: this machine is not the same a moment later. None is its own base:
            # it would find its memory in the caches.
            base_ns, took_ns = _turn(base, first), _turn(each, first)
            if turn:  # what was touched the first time is in memory then
                times[name].append(took_ns)
                shares[name].append(base_ns / took_ns)
    return {name: {"ns": median(times[name]), "of_base": median(shares[name])} for name in candidates}


def _turn(candidate: Candidate, first: bool) -> float:
    if first:
        candidate.forget()
    return candidate.decide()


def costs() -> dict[str, Any]:
    """Of all schedulers and affinities, and of schedulers that look at each backend by their number."""
    names = {name: Candidate(name) for name in SCHEDULERS}
    base = Candidate("wrr")
    limited = {"wrr, limits": Candidate("wrr", most_flows=_FLOWS)}
    affinities = {each: Candidate("wrr", each) for each in AFFINITIES}
    data: dict[str, Any] = {
        "backends": _BACKENDS,
        "rounds": _ROUNDS,
        "flows": _FLOWS,
        "new": _beside(names, base),
        "known": _beside(names, base, first=False),
        "limits": _beside(limited, base)["wrr, limits"],
        "affinities": _beside(affinities, base, first=False),
        "many": [],
    }
    for backends in (10, 100, 1_000):
        both = [Candidate(name, backends=backends) for name in ("wrr", "wlc")]
        data["many"].append({"backends": backends, **_beside({"wlc": both[1]}, both[0])["wlc"]})
    return data


#: Sends small datagrams for a VIP, each from another source, for some seconds.
_FLOOD = """
import socket, struct, sys, time
vip, number, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
head = struct.pack("!BBHHHBBH", 0x45, 0, 46, 0, 0, 64, socket.IPPROTO_UDP, 0)
tail = socket.inet_aton(vip) + struct.pack("!4H", 1024, 9, 26, 0) + bytes(18)
until = time.monotonic() + seconds
while time.monotonic() < until:
    for number in range(number, number + 100):
        sending.sendto(head + number.to_bytes(4, "big") + tail, (vip, 0))
"""
#: Of invented sources, and how far apart those of two turns are.
_FIRST_SOURCE, _TURN = 0x6400_0000, 1 << 19
_TURNS = 9
_FLOOD_S = 0.5


class Queued:
    """A daemon whose one worker gets nothing but first packets of flows, out of a real queue."""

    def __init__(self, lab: Lab, scheduler: str) -> None:
        addresses = [f"10.0.0.{20 + number}" for number in range(_BACKENDS)]
        for number, address in enumerate(addresses):
            lab.backends[number % len(lab.backends)].namespace.ip(f"address add {address}/24 dev eth0")
        config = lab.config(
            workers=1,
            checked=False,
            top=f'flows = 4194304\nfirst_core = {BACKEND_CORE}\nfast_path = "off"',
            service=f'listen = ["udp"]\nscheduler = "{scheduler}"',
        )
        backends = "".join(f'[[service.backend]]\naddress = "{address}"\n' for address in addresses)
        vips = config.replace(f'["{VIP4}", "{VIP6}"]', f'["{VIP4}"]')
        self._lab = lab
        self._daemon = lab.daemon(vips[: vips.index("[[service.backend]]")] + backends)
        self._next = _FIRST_SOURCE

    def rate(self) -> float:
        """Packets that the worker decides in a second of its core's time."""
        before, before_s = self._decided()
        words = (sys.executable, "-c", _FLOOD, VIP4, str(self._next), str(_FLOOD_S))
        self._lab.client.run("taskset", "-c", CLIENT_CORE, *words)
        self._next += _TURN
        after, after_s = self._decided()
        return (after - before) / (after_s - before_s)

    def _decided(self) -> tuple[int, float]:
        """Packets so far, and seconds on a core (Documentation/scheduler/sched-stats.rst)."""
        (worker,) = self._daemon.status().workers
        took_ns = int(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0])
        return worker.counters["packets"], took_ns / 1e9


def queued() -> dict[str, dict[str, float]]:
    """What a worker's core carries of first packets, by scheduler, and as a share of that with `wrr`."""
    rates: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
    shares: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
    for name in SCHEDULERS:
        with Lab(Options(sources=1)) as lab, Lab(Options(sources=1)) as beside:
            base, mine = Queued(beside, "wrr"), Queued(lab, name)
            for turn in range(_TURNS + 1):
                base_rate, rate = base.rate(), mine.rate()
                if turn:
                    rates[name].append(rate)
                    shares[name].append(rate / base_rate)
    return {name: {"rate": median(rates[name]), "of_base": median(shares[name])} for name in SCHEDULERS}


def _keys(backends: int) -> Words:
    return np.random.default_rng(7).integers(0, 1 << 63, backends).astype(np.uint64)


def _moved(scheduler: str, backends: int, gone: Sequence[int]) -> dict[str, float]:
    """The spread of clients, and who of those whose backend stays goes to another one when some go."""
    weights, keys = np.ones(backends, np.int64), _keys(backends)
    hashes = np.random.default_rng(9).integers(0, 1 << 62, 1_000_000)
    turns = []
    for without in ([], gone):
        weights[list(without)] = 0
        slots = SCHEDULERS[scheduler].slots(Candidates(weights.copy(), keys, _SIZE))
        turns.append(slots[hashes % slots.size])
        if not len(without):
            share = np.bincount(slots, minlength=backends) / slots.size * backends
    stays = ~np.isin(turns[0], gone)
    return {
        "backends": backends,
        "gone": len(gone),
        "most": float(share.max()),
        "fewest": float(share.min()),
        "moved": float(np.mean(turns[0][stays] != turns[1][stays])),
    }


def hashing() -> dict[str, list[dict[str, float]]]:
    """Of Maglev's table and of a plain one: shares of the slots, and who moves when 1 or 1 % of them go."""
    return {
        name: [_moved(name, backends, range(max(1, backends // 100))) for backends in (10, 100, 1_000)]
        for name in ("mh", "sh")
    }


def measure(parts: Sequence[Callable[[], Any]] = (costs, queued, hashing)) -> dict[str, Any]:
    """All of it."""
    return {part.__name__: part() for part in parts}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Measure schedulers and affinities, and write FOLDER/schedulers.json."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    (folder / "schedulers.json").write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
