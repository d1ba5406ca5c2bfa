"""How costs grow with flows, backends, services and workers: `python tests/bench/scale.py --out FOLDER`."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.config.model import Config
from loaded_mp.datapath.balance import decide
from loaded_mp.datapath.messages import HOOK_PREROUTING, Queued
from loaded_mp.datapath.system import Longs, now_us
from loaded_mp.datapath.work import work_of
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.flows.table import MAX_VALUE, WAYS, FlowTable, expire, find, forget, insert, touch
from loaded_mp.memory.shared import SharedMemory, memory_bytes, new_shared_memory
from loaded_mp.packet.address import Address128
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.sweep import PIECE

_LOOKUPS = 1_000_000
_REPEATS = 5
_NOW_S, _DEADLINE_S = 1_000, 100_000
VIP = 0xC000020A
_PACKET = 28


@compiled
def _flow(table: FlowTable, source: np.uint64) -> Flow:
    return flow_of(table.secret, np.uint64(0), Address128(np.uint64(0), source))


@compiled
def _fill(table: FlowTable, flows: int) -> None:
    for source in range(flows):
        insert(table, _flow(table, np.uint64(source)), source & 3, _DEADLINE_S)


@compiled
def _look_up(table: FlowTable, sources: Words) -> int:
    found = 0
    for source in sources:
        entry, word = find(table, _flow(table, source))
        if entry >= 0 and touch(table, entry, word, _NOW_S, _DEADLINE_S):
            found += 1
    return found


@compiled
def decide_all(packet: Bytes, sources: Words, vips: Words, memory: SharedMemory) -> int:
    """Parse, look up, rewrite: one UDP packet after another, from these sources to these VIPs."""
    balanced = 0
    work = work_of(memory, 0, _NOW_S)
    queued = Queued(1, HOOK_PREROUTING, 0, _PACKET, False, True, 0, False)
    for i in range(sources.size):
        for byte in range(4):
            shift = np.uint64(24 - 8 * byte)
            packet[12 + byte] = np.uint8(sources[i] >> shift & np.uint64(0xFF))
            packet[16 + byte] = np.uint8(vips[i] >> shift & np.uint64(0xFF))
        balanced += decide(packet, queued, work).reason == Reason.OK
    return balanced


@compiled
def _walk(following: Words, steps: int) -> int:
    """Read from line to line, none of which is known before the one before it has come."""
    at = 0
    for _ in range(steps):
        at = int(np.int64(following[at]))
    return at


def _time_ns(call: Callable[[], object], operations: int) -> float:
    """Median nanoseconds of one operation; the first call compiles and warms up."""
    call()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return median(times) / operations


def _sources(flows: int) -> Words:
    return np.random.default_rng(1).integers(0, flows, _LOOKUPS).astype(np.uint64)


def _read_ns(words: int) -> float:
    """Nanoseconds until memory answers: a read anywhere in an array of as many words as a table has."""
    following = np.zeros(words, np.uint64)
    lines = np.random.default_rng(3).permutation(words // WAYS).astype(np.uint64) * np.uint64(WAYS)
    following[lines] = np.roll(lines, -1)
    return _time_ns(lambda: _walk(following, _LOOKUPS), _LOOKUPS)


def lookups() -> list[dict[str, float]]:
    """Nanoseconds of a lookup with its touch, and of one read in as much memory, over flows in the table."""
    rows = []
    for flows in (10**3, 10**4, 10**5, 10**6, 10**7):
        table = new_shared_memory(flows, 1).table
        _fill(table, flows)
        sources = _sources(flows)
        lookup_ns = _time_ns(partial(_look_up, table, sources), _LOOKUPS)
        rows.append({"flows": flows, "ns": lookup_ns, "read_ns": _read_ns(table.words.size)})
    return rows


def _config(services: int, backends: int) -> Config:
    first = 0x0A000000
    return Config.model_validate(
        {
            "services": [
                {
                    "name": f"s{number}",
                    "vips": [str(_ipv4(VIP + number))],
                    "backends": [
                        {"address": str(_ipv4(first + number * backends + each))} for each in range(backends)
                    ],
                }
                for number in range(services)
            ]
        }
    )


def _ipv4(number: int) -> str:
    return ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))


def _ready(services: int, backends: int, flows: int) -> tuple[SharedMemory, Backends]:
    memory = new_shared_memory(flows, 1)
    state = Backends(memory, _config(services, backends))
    state.fill(memory.snapshots[0])
    return memory, state


def new_packet() -> Bytes:
    """An empty UDP datagram over IPv4."""
    packet = np.zeros(_PACKET, np.uint8)
    packet[:10] = (0x45, 0, 0, _PACKET, 0, 0, 0, 0, 64, 17)
    packet[24:26] = (0, 8)
    return packet


def _packet_ns(services: int, backends: int, flows: int) -> float:
    memory, _ = _ready(services, backends, flows)
    packet = new_packet()
    sources = _sources(flows) + np.uint64(0xC6120000)
    vips = np.random.default_rng(2).integers(VIP, VIP + services, _LOOKUPS).astype(np.uint64)
    return _time_ns(lambda: decide_all(packet, sources, vips, memory), _LOOKUPS)


def packets() -> dict[str, list[dict[str, float]]]:
    """Nanoseconds of a whole decision, over flows, over backends of one service, and over services."""
    return {
        "flows": [{"flows": n, "ns": _packet_ns(1, 3, n)} for n in (10**3, 10**4, 10**5, 10**6, 10**7)],
        "backends": [{"backends": n, "ns": _packet_ns(1, n, 10**5)} for n in (1, 10, 100, 1000)],
        "services": [{"services": n, "ns": _packet_ns(n, 3, 10**5)} for n in (1, 10, 100, 1000)],
    }


def _one_worker(memory: SharedMemory, sources: Words, start: Any, queue: Any) -> None:
    start.wait()
    started = time.perf_counter()
    for _ in range(_REPEATS):
        _look_up(memory.table, sources)
    queue.put(_REPEATS * sources.size / (time.perf_counter() - started))


def workers() -> list[dict[str, float]]:
    """Millions of lookups per second of all workers together, in one table of a million flows."""
    memory = new_shared_memory(10**6, 8)
    _fill(memory.table, 10**6)
    sources = _sources(10**6)
    _look_up(memory.table, sources)
    context = multiprocessing.get_context("fork")
    rows = []
    for number in (1, 2, 4, 8):
        start, queue = context.Event(), context.Queue()
        arguments = (memory, sources, start, queue)
        running = [context.Process(target=_one_worker, args=arguments) for _ in range(number)]
        for process in running:
            process.start()
        start.set()
        rows.append({"workers": number, "millions_per_s": sum(queue.get() for _ in running) / 1e6})
        for process in running:
            process.join()
    return rows


def pauses() -> dict[str, float]:
    """Milliseconds of the supervisor's work beside the workers, with a million flows."""
    memory, state = _ready(1000, 8, 10**6)
    table = memory.table
    _fill(table, 10**6)
    counts = np.zeros(MAX_VALUE + 1, np.int64)
    nine = np.arange(MAX_VALUE + 1) == 9
    entries = table.words.size
    return {
        "publish_1000_services_ms": _time_ns(lambda: state.fill(memory.snapshots[1]), 1) / 1e6,
        "sweep_ms": _time_ns(lambda: expire(table, 0, entries, 0, counts), 1) / 1e6,
        "longest_piece_of_sweep_ms": _time_ns(lambda: expire(table, 0, PIECE, 0, counts), 1) / 1e6,
        "forget_backend_ms": _time_ns(lambda: forget(table, 0, entries, nine), 1) / 1e6,
    }


@compiled
def _decide_for(
    microseconds: int,
    packet: Bytes,
    sources: Words,
    vips: Words,
    memory: SharedMemory,
    clock: Longs,
) -> tuple[int, int, int]:
    """Packets decided in batches of 64; the longest batch in microseconds, and how many took over 1 ms."""
    begin = last = now_us(clock)
    packets = longest = late = 0
    while last - begin < microseconds:
        at = packets % (sources.size - 64)
        packets += decide_all(packet, sources[at : at + 64], vips[at : at + 64], memory)
        now = now_us(clock)
        longest = max(longest, now - last)
        late += now - last > 1000
        last = now
    return packets, longest, late


def _supervise(memory: SharedMemory, state: Backends) -> None:
    """Publish, sweep and forget without a pause."""
    table = memory.table
    counts = np.zeros(MAX_VALUE + 1, np.int64)
    nine = np.arange(MAX_VALUE + 1) == 9
    while True:
        state.fill(memory.snapshots[1])
        for first in range(0, table.words.size, PIECE):
            expire(table, first, first + PIECE, 0, counts)
        forget(table, 0, table.words.size, nine)


def waits() -> list[dict[str, float]]:
    """The longest that 64 packets take a worker, alone and beside a busy supervisor, with a million flows."""
    memory, state = _ready(1000, 8, 10**6)
    _fill(memory.table, 10**6)
    packet = new_packet()
    sources = _sources(10**6) + np.uint64(0xC6120000)
    vips = np.random.default_rng(2).integers(VIP, VIP + 1000, _LOOKUPS).astype(np.uint64)
    arguments = (packet, sources, vips, memory, np.zeros(2, np.int64))
    _decide_for(1000, *arguments)
    pause_us = 3_000_000  # what each row takes
    rows: list[dict[str, float]] = []
    for busy in (False, True):
        beside = multiprocessing.get_context("fork").Process(target=_supervise, args=(memory, state))
        if busy:
            beside.start()
        # A fork makes the first write to each page slow, which no daemon's worker meets.
        _decide_for(pause_us // 6, *arguments)
        packets, longest_us, late = _decide_for(pause_us, *arguments)
        if busy:
            beside.kill()
            beside.join()
        rows.append(
            {"supervisor_busy": busy, "packets": packets, "longest_us": longest_us, "batches_over_1_ms": late}
        )
    return rows


def memory() -> dict[str, float]:
    """Bytes that are shared, by what they grow with."""
    return {
        "bytes_per_flow": (memory_bytes(1 << 21, 1) - memory_bytes(1 << 20, 1)) / (1 << 20),
        "bytes_per_worker": memory_bytes(1 << 20, 2) - memory_bytes(1 << 20, 1),
        "default_bytes_4_workers": memory_bytes(1 << 20, 4),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write scale.json there.")
def main(out: Path) -> None:
    """Measure how costs grow."""
    data: dict[str, Any] = {}
    for part in (lookups, packets, workers, pauses, waits, memory):
        print(f"measuring: {(part.__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
        data[part.__name__] = part()
    print(json.dumps(data, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
