"""The paper's measurements (section 5.5) once more: 488 MB over HTTP for 1 to 4 clients at once.

python tests/bench/paper.py --out FOLDER
"""

import concurrent.futures
import contextlib
import json
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.paths import Way, all_paths
from bench.works import latency

_MB = 488
_CLIENTS = (1, 2, 3, 4)


def _download(way: Way, family: int, number: int) -> float:
    """Seconds that one client needs for the file."""
    target = way.targets[family]
    host = f"[{target}]" if family == 6 else target
    source = way.lab.sources(target)[number]
    started = time.monotonic()
    words = ("wget", "-q", "-O", "/dev/null", f"--bind-address={source}", f"http://{host}/big")
    way.lab.client.run(*words, timeout_s=300)
    return time.monotonic() - started


def _transfers(ways: list[Way], rounds: int) -> dict[str, Any]:
    """Seconds of each client, by way, family and number of clients; one list for each round."""
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for family in (4, 6):
            for clients in _CLIENTS:
                for way in ways:
                    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                        times = list(pool.map(lambda n, w=way, f=family: _download(w, f, n), range(clients)))
                    key = (way.name, f"IPv{family}", str(clients))
                    found.setdefault(key[0], {}).setdefault(key[1], {}).setdefault(key[2], []).append(times)
    return found


def _latencies(ways: list[Way], rounds: int) -> dict[str, Any]:
    """Median microseconds of a request and its answer, by way and family."""
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for family in (4, 6):
            for way in ways:
                value = latency("http", family, "50")(way, 1.0).value
                found.setdefault(way.name, {}).setdefault(f"IPv{family}", []).append(value)
    return found


def table(data: dict[str, Any]) -> str:
    """The paper's tables as Markdown: mean seconds of all clients, and MB/s over all of them."""
    lines = ["| way | family | 1 client | 2 clients | 3 clients | 4 clients |", "|---|---|---|---|---|---|"]
    for way, families in data["transfers"].items():
        for family, by_clients in families.items():
            cells = []
            for clients, rounds in by_clients.items():
                seconds = median(mean(times) for times in rounds)
                total = median(int(clients) * data["mb"] / max(times) for times in rounds)
                cells.append(f"{seconds:.2f} s, {total:,.0f} MB/s")
            lines.append(f"| {way} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Default: 3.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write paper.json there.")
def main(rounds: int, out: Path) -> None:
    """Measure what the paper measured."""
    with contextlib.ExitStack() as stack:
        ways = [stack.enter_context(path()) for path in all_paths(quick=True)]
        for way in ways:
            way.lab.big_file(_MB * 1_000_000 // (1 << 20) + 1)
        data = {"mb": _MB, "transfers": _transfers(ways, rounds), "latency_us": _latencies(ways, rounds)}
    print(table(data))
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
