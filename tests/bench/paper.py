"""The paper's measurements (section 5.5) once more: 488 MB over HTTP for 1 to 4 clients at once, round-trip
times and bandwidths by message size.

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

from bench.paths import IPERF_PORTS, Way, all_paths
from bench.works import cores_awake
from loaded_mp.lab.interrupt import interrupt_on_signals
from loaded_mp.lab.lab import in_url

#: The paper's megabytes; seconds of each client by the number of clients (figure 2); mean seconds, MB/s (4).
MB = 488
PAPER_SECONDS: dict[int, tuple[float, ...]] = {
    1: (48.5,),
    2: (57, 78),
    3: (112, 116, 123),
    4: (145, 187, 166, 158),
}
PAPER_MEAN = {1: (47, 10.39), 2: (68, 14.35), 3: (119.66, 12.23), 4: (160.25, 12.18)}
FAMILIES = (4, 6)
ECHO_BYTES = (64, 256, 1024, 4096, 16_384, 60_000)
WRITE_BYTES = (512, 2048, 8192, 32_768, 131_072)
_ECHOES = 300
_BULK_S = 1
_ECHO = """
import socket, statistics, sys, time
target, size, echoes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
client.connect((target, 7))
times = []
for _ in range(echoes):
    began = time.perf_counter()
    client.send(bytes(size))
    client.recv(65536)
    times.append(time.perf_counter() - began)
print(statistics.median(times) * 1e6)
"""


def _download(way: Way, family: int, client: int) -> float:
    """Seconds that one client needs for the file."""
    target = way.targets[family]
    source = way.lab.sources(target)[client]
    started = time.monotonic()
    words = ("wget", "-q", "-O", "/dev/null", f"--bind-address={source}", f"http://{in_url(target)}/big")
    way.lab.client.run(*words, timeout_s=300)
    return time.monotonic() - started


def _transfers(way: Way, family: int) -> dict[str, Any]:
    """Seconds of each client, by the number of clients at once."""
    seconds = {}
    for clients in PAPER_SECONDS:
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            seconds[str(clients)] = list(pool.map(lambda n: _download(way, family, n), range(clients)))
    return seconds


def _latencies(way: Way, family: int) -> dict[str, Any]:
    """Median microseconds of a UDP echo, by its size."""
    if not way.udp:
        return {}
    found = {}
    with cores_awake():
        for size in ECHO_BYTES:
            words = (sys.executable, "-c", _ECHO, way.targets[family], str(size), str(_ECHOES))
            found[str(size)] = float(way.lab.client.run(*words, timeout_s=120).stdout)
    return found


def _bandwidths(way: Way, family: int) -> dict[str, Any]:
    """Gbit/s of one TCP connection, by the bytes of a write."""
    rates = {}
    for size in WRITE_BYTES:
        words = ("iperf3", "-c", way.targets[family], "-p", str(IPERF_PORTS[0]), "-l", str(size), "-J")
        done = way.lab.client.run(*words, "-t", str(_BULK_S))
        rates[str(size)] = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    return rates


_PARTS = {"transfers": _transfers, "latencies": _latencies, "bandwidths": _bandwidths}


def measure(ways: list[Way], rounds: int) -> dict[str, Any]:
    """data[part][way]["IPv4" or "IPv6"] is a list with an entry for each round."""
    data: dict[str, Any] = {"rounds": rounds}
    for name, part in _PARTS.items():
        for _ in range(rounds):
            for family in FAMILIES:
                for way in ways:
                    with way.turn():
                        found = part(way, family)
                    if found:
                        by_family = data.setdefault(name, {}).setdefault(way.name, {})
                        by_family.setdefault(f"IPv{family}", []).append(found)
        print(f"measured: {name}", file=sys.stderr, flush=True)
    return data


def mean_seconds(rounds: list[dict[str, list[float]]], clients: int) -> float:
    """Median over the rounds of the clients' mean time."""
    return median(mean(each[str(clients)]) for each in rounds)


def rate_mb_s(rounds: list[dict[str, list[float]]], clients: int) -> float:
    """Median over the rounds of what all clients got together until the last was done, in MB/s."""
    return median(clients * MB / max(each[str(clients)]) for each in rounds)


def table(data: dict[str, Any]) -> str:
    """The paper's figures 2 and 4 as one Markdown table, its own numbers first."""
    lines = ["| way | family | 1 client | 2 clients | 3 clients | 4 clients |", "|---|---|---|---|---|---|"]
    cells = [f"{seconds:g} s, {rate:g} MB/s" for seconds, rate in PAPER_MEAN.values()]
    lines.append(f"| loaded, 2004, 100 Mbit/s | IPv4 | {' | '.join(cells)} |")
    for way, families in data["transfers"].items():
        for family, rounds in families.items():
            cells = [
                f"{mean_seconds(rounds, clients):.2f} s, {rate_mb_s(rounds, clients):,.0f} MB/s"
                for clients in PAPER_MEAN
            ]
            lines.append(f"| {way} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Default: 5.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write paper.json there.")
def main(rounds: int, out: Path) -> None:
    """Measure what the paper measured."""
    interrupt_on_signals()
    with contextlib.ExitStack() as stack:
        ways = [stack.enter_context(path()) for path in all_paths(quick=True)]
        for way in ways:
            way.lab.big_file(MB * 1_000_000 // (1 << 20) + 1)
        for way in ways:
            stack.enter_context(way.paused())
        data = measure(ways, rounds)
    print(table(data))
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
