"""Writes docs/performance/README.md and its figures from the data there, and the README's own few numbers.

python tests/bench/page.py [FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import paper
from bench.report import (
    CONNTRACK,
    DNAT,
    HAPROXY,
    QUEUE_2,
    REWRITE_2,
    ROUTING,
    goals_table,
    number,
    ratio,
    shares_table,
    table,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/performance"
PARTS = ("bench", "paper", "scale")
_BEGIN, _END = "<!-- from docs/performance, by make bench -->\n", "<!-- end -->\n"

_PAGE = """# Performance

`sudo make bench` writes this page, its figures and the data that they come from ([bench.json](bench.json),
[paper.json](paper.json), [scale.json](scale.json)). The machine of this run had {cores} cores and Linux
{kernel}: client, balancer and backends share them, in network namespaces. Its absolute numbers say nothing
about another machine; the ratios do. All paths stand at once and take turns ({rounds} rounds, each on paths
built anew, of one or more turns of {seconds:g} s); a ratio is the median over what two paths reached in the
same turn.

- **routing**: no balancer, the client speaks with a backend through the kernel. The limit of everything.
- **queue alone**: routing, and a process accepts each packet unread out of netfilter's queue; with two
  workers, one for each direction. The limit of everything that is behind a queue: what lies between this and
  routing is the kernel's, what lies between this and rewrite mode is ours, and conntrack's, which follows
  the rewritten connections so that a firewall can tell them apart.
- **rewrite** and **conntrack**: the two forwarding modes of loaded-mp.
- **HAProxy** in TCP mode with 2 threads, **nginx** as a stream proxy, and **iptables DNAT**{ipvs}.

![Throughput as a share of plain routing](shares.svg)

## Goals

"Queue alone" is what the queue by itself reaches of the same peer, in rewrite mode's place.

{goals}

Where rewrite mode misses a goal, so does a queue that does nothing, or nearly: each packet of each direction
wakes a process, is copied out, gets a verdict and enters the kernel's path again, and on {cores} cores this
time is taken from the client and the backend. Conntrack mode asks the queue once for each connection, and
is there for those who need more; what it lacks of DNAT is the rule that counts each packet for its backend.

Latencies are measured with cores that do not halt and a client that nothing else delays, from the moment at
which a request was due. Two more processes have to wake up for each request: at p50 that takes {queue_p50}
of routing's time with the queue alone, and {rewrite_p50} in rewrite mode. p99 and p99.9 are less ours
than the machine's: about one request in a hundred meets a pause of a millisecond or two on every path,
routing too, so that p99 falls now on this and now on that side of it. What is behind a queue meets more of
them, as more processes have to get a core for each request. The spread below shows how far they go.

## Everything

CPU s is the busy time of all cores, kernel included, for each GB or each 1,000 requests or packets.

{works}
{lvs}{checks}## The paper's measurements (5.5)

The paper sent 488 MB over HTTP to 1 to 4 clients at once, through a Pentium III at 700 MHz and a network of
100 Mbit/s, and measured IPv6 and IPv4 with a tool of its university beside a router and LVS. Here is the same
over virtual links. The paper's links were full with one client: more clients shared them. Here the cores are.
Each cell: mean seconds of a client, and MB/s of all clients together.

{transfers}

| the paper | redrawn |
|---|---|
| figure 2, seconds of each client | ![](figure-2.svg) |
| figure 3, mean seconds | ![](figure-3.svg) |
| figure 4, rate by clients | ![](figure-4.svg) |
| figure 5, IPv6 latency | ![](figure-5.svg) |
| figure 6, IPv6 bandwidth | ![](figure-6.svg) |
| figure 7, latency beside others | ![](figure-7.svg) |
| figure 8, bandwidth beside others | ![](figure-8.svg) |

## How costs grow

![Nanoseconds by flows, backends and services; lookups by workers](scale.svg)

A lookup finds a source's flow and renews it; a packet is parsed, looked up and rewritten. A lookup among 10^6
flows takes {lookup_6} ns (goal: at most 150), {lookup_growth} times that among 10^3 (goal: at most 3). The
second goal is missed because a table so large lies in main memory, where a single read takes {read_6} ns,
while that of 10^3 flows fits into the nearest cache: {read_3} ns. A lookup is no slower than this one read
only because the processor begins the next lookup while it waits. A whole packet takes {packet_6} ns among
10^6 flows, {packet_growth} times that among 10^3; the kernel's part of it takes microseconds.

| with a million flows | |
|---|---|
| publish a snapshot of 1,000 services with 8 backends each | {publish_1000_services_ms:.1f} ms |
| sweep the whole table for expired flows | {sweep_ms:.1f} ms |
| the longest piece of it without a pause | {longest_piece_of_sweep_ms:.2f} ms |
| forget the flows of a backend that is gone | {forget_backend_ms:.1f} ms |

No worker waits for any of these: a snapshot is written beside the one that is read, and sweeping takes no
lock. Measured, in 3 s of batches of 64 packets with the supervisor at all three without a pause:

| supervisor | packets | longest batch | batches over 1 ms |
|---|---|---|---|
{waits}

| memory | |
|---|---|
| for each flow (twice the room is kept, so that buckets seldom fill) | {bytes_per_flow:.0f} bytes |
| for each worker | {bytes_per_worker_kb:.0f} KB |
| with 4 workers and the default of 1,048,576 flows | {default_mib:.0f} MiB |
"""

_LVS = """## Beside LVS

The kernel of the machine above has no IPVS. `sudo make bench-lvs` measured these ([lvs.json](lvs.json)) in a
guest that has it: User-Mode Linux {kernel} with {cores} core, {rounds} rounds. System calls are far dearer
there, so what runs in userspace, HAProxy as well as rewrite mode, looks worse than it is. LVS, DNAT and all
but a connection's first packet in conntrack mode stay in the kernel and compare fairly.

{shares}

"""


_CHECKS = """## Checks

`tests/bench/checks.py` ([checks.json](checks.json)) asks {number:,} targets beyond a pair of interfaces,
each every {interval_s:g} s, with the daemon's own runner, pinned to one core: so many checks of a kind a
second of that core carries, whatever runs beside it. On time is what begins within a tenth of its
interval. Where one core is not enough, or others take it away, checks begin later than they are due; they
do not fail by that.

| check | a second and core | targets that a core carries | core taken | begun a second | on time |
|---|---|---|---|---|---|
{rows}

"""


def _checks(data: dict[str, Any]) -> str:
    kinds, interval_s = data["kinds"], data["interval_s"]
    rows = (
        f"| {name} | {row['per_second_and_core']:,.0f} | {row['per_second_and_core'] * interval_s:,.0f}"
        f" | {row['core']:.2f} | {row['per_second']:,.0f} | {row['on_time']:.1%} |"
        for name, row in kinds.items()
    )
    number = max(row["checks"] for row in kinds.values())
    return _CHECKS.format(number=number, interval_s=interval_s, rows="\n".join(rows))


def _waits(rows: list[dict[str, float]]) -> str:
    return "\n".join(
        f"| {'busy' if row['supervisor_busy'] else 'idle'} | {row['packets']:,} | {row['longest_us']:,} us"
        f" | {row['batches_over_1_ms']} |"
        for row in rows
    )


def _times(bench: dict[str, Any], way: str) -> str:
    """How many times routing's HTTP latency (p50) a way has."""
    times = ratio(bench, "http-p50", way, ROUTING)
    return "?" if times is None else f"{times:.2f} times"


def _beside_lvs(lvs: dict[str, Any]) -> str:
    return _LVS.format(**lvs["machine"], rounds=lvs["rounds"], shares=shares_table(lvs))


def page(data: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    bench, scale = data["bench"], data["scale"]
    lookup = {row["flows"]: row["ns"] for row in scale["lookups"]}
    read = {row["flows"]: row["read_ns"] for row in scale["lookups"]}
    packet = {row["flows"]: row["ns"] for row in scale["packets"]["flows"]}
    has_ipvs = any("LVS" in way for way in bench["works"]["bulk-1"]["rounds"])
    return _PAGE.format(
        **bench["machine"],
        **scale["pauses"],
        rounds=bench["rounds"],
        seconds=bench["seconds"],
        ipvs=", and LVS with NAT" if has_ipvs else " (this kernel has no IPVS)",
        lvs=_beside_lvs(data["lvs"]) if "lvs" in data and not has_ipvs else "",
        checks=_checks(data["checks"]) if "checks" in data else "",
        goals=goals_table(bench),
        works=table(bench),
        transfers=paper.table(data["paper"]),
        queue_p50=_times(bench, QUEUE_2),
        rewrite_p50=_times(bench, REWRITE_2),
        lookup_6=number(lookup[10**6]),
        lookup_growth=number(lookup[10**6] / lookup[10**3]),
        read_3=number(read[10**3]),
        read_6=number(read[10**6]),
        packet_6=number(packet[10**6]),
        packet_growth=number(packet[10**6] / packet[10**3]),
        waits=_waits(scale["waits"]),
        bytes_per_flow=scale["memory"]["bytes_per_flow"],
        bytes_per_worker_kb=scale["memory"]["bytes_per_worker"] / 1000,
        default_mib=scale["memory"]["default_bytes_4_workers"] / (1 << 20),
    )


def summary(bench: dict[str, Any]) -> str:
    """The few numbers of the README."""
    lines = ["| | rewrite, of routing | rewrite, of HAProxy | conntrack, of DNAT | conntrack, of HAProxy |"]
    lines.append("|---|---|---|---|---|")
    pairs = ((REWRITE_2, ROUTING), (REWRITE_2, HAPROXY), (CONNTRACK, DNAT), (CONNTRACK, HAPROXY))
    for work in ("bulk-1", "bulk-4x4", "http", "new", "udp"):
        ratios = [ratio(bench, work, way, peer) for way, peer in pairs]
        cells = ["" if each is None else f"{each:.2f}" for each in ratios]
        lines.append(f"| {bench['works'][work]['title']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_summary(readme: str, bench: dict[str, Any]) -> str:
    """The README with its numbers renewed."""
    before, rest = readme.split(_BEGIN)
    return before + _BEGIN + summary(bench) + _END + rest.split(_END, 1)[1]


def read(folder: Path) -> dict[str, Any]:
    """The data that the last run left; of LVS and of checks only where they were measured."""
    parts = [*PARTS, *(part for part in ("lvs", "checks") if (folder / f"{part}.json").exists())]
    return {part: json.loads((folder / f"{part}.json").read_text()) for part in parts}


def main(folder: Path) -> None:
    """Write everything anew."""
    from bench.plots import DRAWN  # noqa: PLC0415 (the tests read the page without matplotlib)

    data = read(folder)
    for part, draw in DRAWN.items():
        draw(data[part], folder)
    (folder / "README.md").write_text(page(data))
    readme = ROOT / "README.md"
    readme.write_text(with_summary(readme.read_text(), data["bench"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
