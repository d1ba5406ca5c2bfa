"""What every path has to do, and how it is measured."""

import contextlib
import json
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.paths import CLIENT_CORE, IPERF_PORTS, Way
from loaded_mp.lab.lab import in_url
from loaded_mp.lab.wait import wait_until

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
print(json.dumps([times[min(len(times) - 1, int(len(times) * p / 100))] * 1e6 for p in (50, 99, 99.9)]))
"""
_RATE = 500
_SETTLE_S = 0.3
_ATTEMPTS = 3


@dataclass(frozen=True)
class Result:
    """One round of one work on one path."""

    value: float
    cpu_s: float  #: of the whole machine, kernel included
    amount: float  #: GB or thousands of requests that this CPU time went into; 0: not measured


@dataclass(frozen=True)
class Measure:
    """What one figure of a work means."""

    key: str
    title: str
    unit: str
    more_is_better: bool = True


@dataclass(frozen=True)
class Work:
    """`run` does one round of some seconds and returns a result for each measure."""

    measures: tuple[Measure, ...]
    run: Callable[[Way, int], list[Result]]
    udp: bool = False
    quick: bool = False
    times: int = 1  #: so many rounds for one of other work, where noise is large


def _cpu_s() -> float:
    """Busy time of all cores so far (proc(5), /proc/stat: all but idle and iowait, in 1/100 s)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / 100


def bulk(family: int, streams: int, sources: int, up: bool) -> Callable[[Way, int], list[Result]]:
    """iperf3: `streams` in all, from `sources` addresses. Gbit/s of payload."""

    def run(path: Way, seconds: int) -> list[Result]:
        target = path.targets[family]
        before = _cpu_s()
        words = ["taskset", "-c", CLIENT_CORE, "iperf3", "-c", target, "-t", str(seconds), "-J"]
        words += ["-P", str(streams // sources)]
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
        return [Result(sum(rates) / 1e9, cpu_s, sum(rates) * seconds / 8e9)]

    return run


def requests(family: int, connections: int, close: bool) -> Callable[[Way, int], list[Result]]:
    """wrk: requests per second, on connections that stay or on a new one for each."""

    def run(path: Way, seconds: int) -> list[Result]:
        header = ("-H", "Connection: close") if close else ()
        before = _cpu_s()
        done = path.lab.client.run(
            "taskset", "-c", CLIENT_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *header,
            f"http://{in_url(path.targets[family])}/",
        )  # fmt: skip
        cpu_s = _cpu_s() - before
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
        errors = re.search(r"Socket errors: .*", done.stdout)
        if errors and "connect 0, read 0, write 0, timeout 0" not in errors[0] and not close:
            raise RuntimeError(f"{path.name}: {errors[0]}")
        return [Result(rate, cpu_s, rate * seconds / 1000)]

    return run


def datagrams(path: Way, seconds: int) -> list[Result]:
    """iperf3 sends as many 18-byte datagrams as it can; thousands per second that the backends read.

    Counted while it goes on: what waits in a long queue when the sending ends would be counted as lost.
    """
    for _ in range(_ATTEMPTS):
        result = _count_datagrams(path, seconds)
        if result.value:  # else iperf3's greeting got lost, which it does not repeat
            return [result]
    raise RuntimeError(f"{path.name}: no datagram arrives")


def _count_datagrams(path: Way, seconds: int) -> Result:
    words = ("taskset", "-c", CLIENT_CORE, "iperf3", "-u", "-l", "18", "-b", "0", "-t", str(seconds + 1))
    client = path.lab.client.start(*words, "-c", path.targets[4])
    time.sleep(_SETTLE_S)
    before, began, already = _cpu_s(), time.monotonic(), _datagrams_read(path)
    time.sleep(seconds)
    arrived, took, cpu_s = _datagrams_read(path) - already, time.monotonic() - began, _cpu_s() - before
    client.terminate()
    client.wait(20)
    wait_until(lambda: not _still_arriving(path), "the last datagram arrives")
    return Result(arrived / took / 1000, cpu_s, arrived / 1000)


def _datagrams_read(path: Way) -> int:
    """By all backends so far: UDP over IPv4, InDatagrams of /proc/net/snmp (RFC 4113, udpInDatagrams)."""
    return sum(int(line.split()[0]) for line in _udp_counts(path))


def _still_arriving(path: Way) -> bool:
    before = _udp_counts(path)
    time.sleep(0.1)
    return _udp_counts(path) != before


def _udp_counts(path: Way) -> list[str]:
    counts = [backend.namespace.run("cat", "/proc/net/snmp").stdout for backend in path.lab.backends]
    return [re.findall(r"^Udp: (\d.*)", text, re.MULTILINE)[0] for text in counts]


def latency(kind: str) -> Callable[[Way, int], list[Result]]:
    """Microseconds for one request and its answer at a moderate, fixed rate: p50, p99 and p99.9."""

    def run(path: Way, seconds: int) -> list[Result]:
        with cores_awake():
            done = path.lab.client.run(
                "chrt", "--fifo", "1", "taskset", "-c", CLIENT_CORE, sys.executable, "-c", _ASK_AT_A_RATE,
                kind, path.targets[4], str(_RATE), str(2 * seconds),
                timeout_s=2 * seconds + 20,
            )  # fmt: skip
        return [Result(value, 0.0, 0.0) for value in json.loads(done.stdout)]

    return run


@contextlib.contextmanager
def cores_awake() -> Iterator[None]:
    """Ask the kernel not to let idle cores halt (Documentation/power/pm_qos_interface.rst), where it can.

    How long a virtual machine's halted core takes to wake is its host's matter, and hides all else.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(Path("/dev/cpu_dma_latency").open("wb", buffering=0))
            file.write(struct.pack("i", 0))
        yield


def _latencies(kind: str) -> tuple[Measure, ...]:
    return tuple(
        Measure(f"{kind}-p{each:g}", f"{kind.upper()} latency p{each:g} at {_RATE}/s", "us", False)
        for each in (50, 99, 99.9)
    )


def all_works() -> list[Work]:
    """Everything that is measured; `quick` marks what a short look is content with."""

    def bulk_tcp(key: str, title: str) -> tuple[Measure, ...]:
        return (Measure(key, f"bulk TCP, {title}", "Gbit/s"),)

    kept = (
        Measure("http", "HTTP kept alive", "requests/s"),
        Measure("http-v6", "HTTP kept alive, IPv6", "requests/s"),
    )
    new = Measure("new", "HTTP, new connection each", "requests/s")
    small = Measure("udp", "UDP, 18-byte datagrams", "kpackets/s")
    return [
        Work(bulk_tcp("bulk-1", "1 stream, down"), bulk(4, 1, 1, False), quick=True, times=2),
        Work(bulk_tcp("bulk-1-up", "1 stream, up"), bulk(4, 1, 1, True)),
        Work(bulk_tcp("bulk-2", "2 streams of 1 source"), bulk(4, 2, 1, False)),
        Work(bulk_tcp("bulk-4x4", "4 streams of 4 sources"), bulk(4, 4, 4, False), quick=True, times=2),
        Work(bulk_tcp("bulk-8x8", "8 streams of 8 sources"), bulk(4, 8, 8, False)),
        Work(bulk_tcp("bulk-1-v6", "1 stream, IPv6"), bulk(6, 1, 1, False)),
        Work(kept[:1], requests(4, 32, False), quick=True, times=2),
        Work(kept[1:], requests(6, 32, False)),
        Work((new,), requests(4, 32, True), quick=True, times=2),
        Work((small,), datagrams, udp=True, quick=True, times=2),
        Work(_latencies("http"), latency("http"), quick=True, times=4),
        Work(_latencies("udp"), latency("udp"), udp=True, times=2),
    ]
