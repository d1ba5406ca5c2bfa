"""What every path has to do, and how it is measured."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.paths import IPERF_PORTS, Way

#: Asks over one connection at fixed moments and counts from the moment at which it should have asked, so that
#: a slow answer is charged to all who would have waited behind it.
_ASK_AT_A_RATE = """
import gc, json, socket, sys, time
kind, target, rate, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
gc.disable()
family = socket.AF_INET6 if ":" in target else socket.AF_INET
port, question = (7, b"x" * 64) if kind == "udp" else (80, b"GET / HTTP/1.1\\r\\nHost: vip\\r\\n\\r\\n")
client = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
client.settimeout(5)
client.connect((target, port))
if kind != "udp":
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
start = time.perf_counter() + 0.05
for number in range(int(rate * seconds)):
    due = start + number / rate
    while (left := due - time.perf_counter()) > 0:
        if left > 0.0003:
            time.sleep(left - 0.0002)
    client.send(question)
    client.recv(4096)
    times.append(time.perf_counter() - due)
times.sort()
at = {p: min(len(times) - 1, int(len(times) * p / 100)) for p in (50, 99, 99.9)}
print(json.dumps({str(p): times[row] * 1e6 for p, row in at.items()}))
"""
_RATE = 500


@dataclass(frozen=True)
class Result:
    """One round of one work on one path."""

    value: float
    cpu_s: float  #: of the whole machine, kernel included
    amount: float  #: GB or thousands of requests that this CPU time went into


@dataclass(frozen=True)
class Work:
    """`run` does one round of some seconds."""

    key: str
    title: str
    unit: str
    more_is_better: bool
    run: Callable[[Way, float], Result]
    udp: bool = False
    quick: bool = False


def _cpu_s() -> float:
    """Busy time of all cores so far (proc(5), /proc/stat: all but idle and iowait, in 1/100 s)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / 100


def _host(target: str) -> str:
    return f"[{target}]" if ":" in target else target


def bulk(family: int, streams: int, sources: int, up: bool) -> Callable[[Way, float], Result]:
    """iperf3: `streams` in all, from `sources` addresses. Gbit/s of payload."""

    def run(path: Way, seconds: float) -> Result:
        target = path.targets[family]
        before = _cpu_s()
        streams_each = str(streams // sources)
        words = ["taskset", "-c", "0", "iperf3", "-c", target, "-t", f"{seconds:g}", "-J", "-P", streams_each]
        words += [] if up else ["-R"]
        clients = [
            path.lab.client.talk(*words, "-p", str(port), "-B", source)
            for source, port in zip(path.lab.sources(target)[:sources], IPERF_PORTS, strict=False)
        ]
        outputs = [client.communicate(timeout=seconds + 20)[0] for client in clients]
        cpu_s = _cpu_s() - before
        for text in outputs:
            if "sum_received" not in text:
                raise RuntimeError(f"{path.name}: iperf3 says {text}")
        rates = [json.loads(text)["end"]["sum_received"]["bits_per_second"] for text in outputs]
        return Result(sum(rates) / 1e9, cpu_s, sum(rates) * seconds / 8e9)

    return run


def requests(family: int, connections: int, close: bool) -> Callable[[Way, float], Result]:
    """wrk: requests per second, on connections that stay or on a new one for each."""

    def run(path: Way, seconds: float) -> Result:
        header = ("-H", "Connection: close") if close else ()
        before = _cpu_s()
        done = path.lab.client.run(
            "taskset", "-c", "0", "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", *header,
            f"http://{_host(path.targets[family])}/",
        )  # fmt: skip
        cpu_s = _cpu_s() - before
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
        errors = re.search(r"Socket errors: .*", done.stdout)
        if errors and "connect 0, read 0, write 0, timeout 0" not in errors[0] and not close:
            raise RuntimeError(f"{path.name}: {errors[0]}")
        return Result(rate, cpu_s, rate * seconds / 1000)

    return run


def datagrams(family: int) -> Callable[[Way, float], Result]:
    """iperf3: as many 18-byte datagrams as go through; thousands per second that arrive."""

    def run(path: Way, seconds: float) -> Result:
        target = path.targets[family]
        before = _cpu_s()
        words = ["taskset", "-c", "0", "iperf3", "-u", "-l", "18", "-b", "0", "-J", "-t", f"{seconds:g}"]
        done = path.lab.client.run(*words, "-c", target, timeout_s=seconds + 20)
        cpu_s = _cpu_s() - before
        end = json.loads(done.stdout)["end"]["sum"]
        arrived = end["packets"] - end["lost_packets"]
        return Result(arrived / end["seconds"] / 1000, cpu_s, arrived / 1000)

    return run


def latency(kind: str, family: int, percentile: str) -> Callable[[Way, float], Result]:
    """Microseconds for one request and its answer at a moderate, fixed rate."""

    def run(path: Way, seconds: float) -> Result:
        before = _cpu_s()
        done = path.lab.client.run(
            "taskset", "-c", "0", sys.executable, "-c", _ASK_AT_A_RATE,
            kind, path.targets[family], str(_RATE), f"{seconds:g}",
            timeout_s=seconds + 20,
        )  # fmt: skip
        return Result(json.loads(done.stdout)[percentile], _cpu_s() - before, _RATE * seconds / 1000)

    return run


def all_works() -> list[Work]:
    """Everything that is measured; `quick` marks what a short look is content with."""
    works = [
        Work("bulk-1", "bulk TCP, 1 stream, down", "Gbit/s", True, bulk(4, 1, 1, False), quick=True),
        Work("bulk-1-up", "bulk TCP, 1 stream, up", "Gbit/s", True, bulk(4, 1, 1, True)),
        Work("bulk-2", "bulk TCP, 2 streams of 1 source", "Gbit/s", True, bulk(4, 2, 1, False)),
        Work(
            "bulk-4x4", "bulk TCP, 4 streams of 4 sources", "Gbit/s", True, bulk(4, 4, 4, False), quick=True
        ),
        Work("bulk-8x8", "bulk TCP, 8 streams of 8 sources", "Gbit/s", True, bulk(4, 8, 8, False)),
        Work("bulk-1-v6", "bulk TCP, 1 stream, IPv6", "Gbit/s", True, bulk(6, 1, 1, False)),
        Work("http", "HTTP kept alive", "requests/s", True, requests(4, 32, False), quick=True),
        Work("http-v6", "HTTP kept alive, IPv6", "requests/s", True, requests(6, 32, False)),
        Work("new", "HTTP, new connection each", "requests/s", True, requests(4, 32, True), quick=True),
        Work("udp", "UDP, 18-byte datagrams", "kpackets/s", True, datagrams(4), udp=True, quick=True),
    ]
    for percentile in ("50", "99", "99.9"):
        title = f"HTTP latency p{percentile} at {_RATE}/s"
        run = latency("http", 4, percentile)
        works.append(Work(f"p{percentile}", title, "us", False, run, quick=percentile == "99"))
    works.append(
        Work("udp-p99", f"UDP latency p99 at {_RATE}/s", "us", False, latency("udp", 4, "99"), udp=True)
    )
    return works
