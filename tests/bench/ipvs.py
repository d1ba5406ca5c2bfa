"""Whether schedulers choose as those of IPVS do: the same clients come and go here and in a guest.

python tests/bench/ipvs.py FOLDER writes ipvs.json there.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import click
from scapy.layers.inet import IP, TCP

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from world import World

from bench.arrivals import CASES, HASHING, PORT, Case, Client, hashed_clients, plan
from bench.guest import in_guest, require_guest
from loaded_mp.config.model import Backend, Service
from loaded_mp.lab.interrupt import interrupt_on_signals
from loaded_mp.packet.reasons import Reason

Choices = Sequence[int | None]


def _service(case: Case) -> Service:
    limits = case.limits or ((0, 0),) * len(case.weights)
    backends = [
        Backend.model_validate(
            {
                "address": case.backend(place),
                "weight": weight,
                "most_flows": most or None,
                "fewest_flows": fewest or None,
            }
        )
        for place, (weight, (most, fewest)) in enumerate(zip(case.weights, limits, strict=True))
    ]
    return Service.model_validate(
        {
            "name": "web",
            "vips": case.vips,
            "listen": [f"tcp/{PORT}"],
            "scheduler": case.scheduler,
            "affinity": "connection",
            "backends": backends,
        }
    )


class Balancer(World):
    """Our side of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__(_service(case))
        self._case = case

    def comes(self, client: Client) -> int | None:
        """The place of the backend that a new connection gets."""
        begins = IP(src=client.address, dst=self._case.vips[client.vip])
        reason, result = self.request(begins / TCP(sport=client.port, dport=PORT, flags="S"))
        if reason != Reason.OK:
            return None
        self.request(begins / TCP(sport=client.port, dport=PORT, flags="A"))
        return result[19] - 1

    def goes(self, client: Client, place: int) -> None:
        """A backend ends a connection."""
        answer = IP(src=self._case.backend(place), dst=client.address)
        self.reply(answer / TCP(sport=PORT, dport=client.port, flags="FA"))

    def without_first(self) -> None:
        """The first backend is taken away."""
        web = _service(self._case)
        self.publish(web.model_copy(update={"backends": web.backends[1:]}))


def counted(case: Case) -> list[list[int | None]]:
    """Our choices in each round."""
    balancer = Balancer(case)
    came: list[tuple[Client, int | None]] = []
    rounds = []
    for now in plan(case):
        got = [balancer.comes(each) for each in now.come]
        came += zip(now.come, got, strict=True)
        for each in now.go:
            client, place = came[each]
            if place is not None:
                balancer.goes(client, place)
        rounds.append(got)
    return rounds


def hashed(case: Case) -> list[Choices]:
    """Our choices in three turns, the last without the first backend."""
    balancer = Balancer(case)
    turns: list[Choices] = []
    for turn in range(3):
        if turn == 2:
            balancer.without_first()
        turns.append([balancer.comes(each) for each in hashed_clients(case, turn)])
    return turns


def alike(one: Sequence[Choices], other: Sequence[Choices]) -> dict[str, int]:
    """How many choices there were, and how many are the same up to the first that is another.

    What comes after that finds other open flows.
    """
    pairs = list(zip(chain(*one), chain(*other), strict=True))
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return {"choices": len(pairs), "same": first}


def whole_rounds(case: Case, choices: Sequence[Choices]) -> list[int]:
    """How many rounds of as many connections as the weights sum up to there were, and how many by weight."""
    came = list(chain(*choices))
    size = sum(case.weights)
    parts = [came[first : first + size] for first in range(0, len(came) - size + 1, size)]
    right = [tuple(Counter(part)[place] for place in range(len(case.weights))) for part in parts]
    return [len(parts), right.count(case.weights)]


def properties(turns: Sequence[Choices], backends: int) -> dict[str, float]:
    """Of a hashing scheduler: who stays with a second connection, the spread, who moves and must not."""
    first, second, third = turns
    shares = Counter(first)
    loads = [shares[place] for place in range(backends)]
    others = [(a, c) for a, c in zip(first, third, strict=True) if a != 0]
    return {
        "clients": len(first),
        "stay": mean(a == b for a, b in zip(first, second, strict=True)),
        "most": max(loads) / mean(loads),
        "fewest": min(loads) / mean(loads),
        "moved": mean(a != c for a, c in others),
        "lost": mean(c is None for c in third),
    }


def compared(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our choices beside those of IPVS."""
    choices = {case.name: alike(theirs["counted"][case.name], counted(case)) for case in CASES}
    rounds = {
        case.name: {
            "ipvs": whole_rounds(case, theirs["counted"][case.name]),
            "ours": whole_rounds(case, counted(case)),
        }
        for case in CASES
        if case.scheduler == "wrr" and not case.limits
    }
    hashing = {
        case.name: {
            "ipvs": properties(theirs["hashed"][case.name], len(case.weights)),
            "ours": properties(hashed(case), len(case.weights)),
        }
        for case in HASHING
    }
    return {"kernel": theirs["kernel"], "choices": choices, "rounds": rounds, "hashing": hashing}


def measure() -> dict[str, Any]:
    """Let both choose. Raises RuntimeError if the guest fails."""
    return compared(json.loads(in_guest(Path(__file__).with_name("arrivals.py"), result="ipvs.json")))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Compare schedulers with those of IPVS in a guest, and write FOLDER/ipvs.json."""
    require_guest()
    interrupt_on_signals()
    (folder / "ipvs.json").write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
