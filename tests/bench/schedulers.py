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

from bench.scale import VIP, decide_all, new_packet
from loaded_mp.config.model import Config
from loaded_mp.flows.atomics import Words
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


def measure(parts: Sequence[Callable[[], Any]] = (costs, hashing)) -> dict[str, Any]:
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
