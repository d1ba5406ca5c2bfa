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
    FAST,
    HAPROXY,
    LIMITS,
    REDIRECT,
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
- **hooks alone**: routing, with conntrack and a rule in each of the tables that the fast path's marks go
  through. The limit of the fast path through the stack: what lies between this and routing is the kernel's.
- **fast path**: loaded-mp as it is by default; the kernel repeats what its workers have decided.
- **redirect**: the same with `fast_path = "redirect"`, past FORWARD rules and conntrack.
- **rewrite**: `fast_path = "off"`, workers rewrite each packet.
- **conntrack**: `forwarding = "conntrack"`, the kernel's NAT.
- **HAProxy** in TCP mode with 2 threads, **nginx** as a stream proxy, and **iptables DNAT**{ipvs}.

![Throughput as a share of plain routing](shares.svg)

## Goals

Reached is the median of the turns' ratios and, in brackets, where it lies with a confidence of 95 % (order
statistics); maybe: the goal lies in there. The limit is what the queue alone, in rewrite mode's place, and
the hooks alone, in the fast path's, reach of the same peer.

{goals}

What the fast path lacks of DNAT is that of the hooks, and the time of its two programs, which find each
packet's flow anew where NAT finds it with the connection. Redirects lack of routing what their two
programs take more than the stack that they leave out.

Where rewrite mode misses a goal, most of that is the queue's, which misses it too, or nearly: each packet of
each direction wakes a process, is copied out, gets a verdict and enters the kernel's path again, and on
{cores} cores this time is taken from the client and the backend. Long packets are copied back too, which
bulk transfers show, and conntrack follows the rewritten connections, which new ones show. Conntrack mode asks
the queue once for each connection, and is there where the kernel has no fast path; what it lacks of DNAT is
the rule that counts each packet for its backend.

Latencies are measured with cores that do not halt and a client that nothing else delays, from the moment at
which a request was due. Two more processes have to wake up for each request: at p50 that takes {queue_p50}
of routing's time with the queue alone, and {rewrite_p50} in rewrite mode. p99 and p99.9 are less ours
than the machine's: about one request in a hundred meets a pause of a millisecond or two on every path,
routing too, so that p99 falls now on this and now on that side of it. What is behind a queue meets more of
them, as more processes have to get a core for each request. The spread below shows how far they go.

## Everything

CPU s is the busy time of all cores, kernel included, for each GB or each 1,000 requests or packets.

{works}
{lvs}{checks}{ipvs_schedulers}{schedulers}## The paper's measurements (5.5)

The paper sent 488 MB over HTTP to 1 to 4 clients at once, through a Pentium III at 700 MHz and a network of
100 Mbit/s, and measured IPv6 and IPv4 with a tool of its university beside a router and LVS. Here is the same
over virtual links. The paper's links were full with one client: more clients shared them. Here the cores are.
Each cell: mean seconds of a client, and MB/s of all clients together. Messages of 4,096 bytes and more are
fragments, which the fast path leaves to workers.

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
interval; beside traffic, while a daemon forwards what wrk asks for on another core. Where one core is not
enough, or others take it away, checks begin later than they are due; they do not fail by that. What bounds
HTTPS are handshakes: each costs a core 0.7 ms, and no check goes on with a session of another one, as it
would not see the certificate then.

| check | a second and core | targets a core carries | core taken | a second | on time | beside traffic |
|---|---|---|---|---|---|---|
{rows}

"""


_IPVS = """## Schedulers beside IPVS

`sudo make bench-lvs` ([ipvs.json](ipvs.json)) lets the same TCP connections begin and end in IPVS, in a
guest with Linux {kernel}, and here: {connections:,} of them, by the weights 1 1 1 1, 5 3 2 1 and 7 20 4 12,
and by 5 3 2 1 with limits (`-x -y`: 6 3, 4 -, 9 8, none). The same choice, up to the first that is another:

| scheduler | connections | the same choice |
|---|---|---|
{choices}

`wrr` gives backends the same connections in another order: here it is smooth, so that a heavy backend does
not get several in a row. Of rounds of as many connections as the weights sum up to, as many are shared by
weight: {rounds}.

Hashing schedulers hash otherwise and have the same properties, with {backends} backends of one weight: who
comes again gets the same backend; the one that gets most has so many times the mean; and when one backend
goes, so many of the others' clients move.

| scheduler | clients, or VIPs | come again to the same | most, of the mean | move |
|---|---|---|---|---|
{hashing}

Deliberately different:

- IPVS goes through backends from the last that was added to the first; here it is the order of the file.
- IPVS counts a connection that ended as 1/256 of one for as long as it remembers it (FIN: 120 s, RST: 10
  s), which decides between equals; here it counts no more. For the comparison IPVS was told to forget after
  1 s.
- Who would go to a full backend by `sh`, `dh` or `mh` gets another one; IPVS drops the connection, unless
  the service has the flag `fallback`. A full backend loses its VIPs with `lblc`; in IPVS it keeps them.
- With `lblcr` a VIP has 16 backends at the most, and all but the first leave when none came for a day; in
  IPVS it is the most loaded one that leaves.
- This kernel of the guest has no `twos`.

"""

_SCHEDULERS = """## Schedulers and affinities

`tests/bench/schedulers.py` ([schedulers.json](schedulers.json)): nanoseconds of a decision on a UDP packet,
with {backends} backends of different weights and {flows:,} clients, in one process; and the rate as a share
of that of `wrr`, which takes its turn directly before each: the median of {rounds} such
shares. What is said of `wrr` and `source` themselves shows how exact that is.

| scheduler | a flow's first packet, ns | rate, of `wrr` | its other packets, ns | rate, of `wrr` |
|---|---|---|---|---|
{costs}

After a flow's first packet the scheduler does not matter. At the first, those that compare open flows look
at every backend, `twos` at two that nobody could have guessed, and `lblcr` at each place that a VIP has:
they are more than 10 % slower there, which is nanoseconds of a packet that costs the kernel microseconds.
With 1,000 backends it is more; what `twos` costs does not depend on their number.

Out of a real queue, with a daemon whose worker gets nothing but first packets, each of another source: what a
core of the worker's carries, the kernel's work on each packet included. What is said of `wrr` beside itself
shows how exact that is.

| scheduler | first packets a second | of `wrr` |
|---|---|---|
{queued}

| `wlc` among so many backends | a flow's first packet, ns | rate, of `wrr` |
|---|---|---|
{many}

A service with limits (`most_flows`) decides first packets at {limits} of the rate of one without. By
affinity, of packets of flows that are there (`none` has no flows: each packet is picked for):

| affinity | ns | rate, of `source` |
|---|---|---|
{affinities}

## Spread and movement of hashing

Maglev's table (`mh`) of 65,537 slots and a plain table (`sh`) with backends of one weight, and what becomes
of clients whose backend stays when 1 % of the backends go, or one. The paper (Eisenbud et al., NSDI 2016,
3.4) promises shares that differ by 1 % at the most where there are over 100 times as many slots as
backends, and that few move.

| | backends | fewest and most slots, of the mean | backends that go | clients of the others that move |
|---|---|---|---|---|
{hashing}

"""


def _ipvs(data: dict[str, Any]) -> str:
    found: dict[str, list[int]] = {}
    for name, each in data["choices"].items():
        row = found.setdefault(name.partition(",")[0], [0, 0])
        row[0] += each["choices"]
        row[1] += each["same"]
    choices = [f"| `{name}` | {came} | {same} |" for name, (came, same) in found.items() if name != "wrr"]
    choices.append(f"| `wrr` | {found['wrr'][0]} | in another order |")
    hashing = [
        f"| `{name}`, {who} | {row['clients']:,} | {row['stay']:.0%} | {row['most']:.2f}"
        f" | {row['moved']:.1%} |"
        for name, both in data["hashing"].items()
        for who, row in (("IPVS", both["ipvs"]), ("here", both["ours"]))
    ]
    total, theirs, ours = (
        sum(each[who][place] for each in data["rounds"].values())
        for who, place in (("ours", 0), ("ipvs", 1), ("ours", 1))
    )
    return _IPVS.format(
        kernel=data["kernel"],
        connections=sum(came for came, _ in found.values()),
        choices="\n".join(choices),
        rounds=f"{theirs} of {total} there, {ours} of {total} here",
        backends=10,
        hashing="\n".join(hashing),
    )


def _schedulers(data: dict[str, Any]) -> str:
    costs = data["costs"]
    return _SCHEDULERS.format(
        backends=costs["backends"],
        flows=costs["flows"],
        rounds=costs["rounds"],
        costs="\n".join(
            f"| `{name}` | {first['ns']:.0f} | {first['of_base']:.2f} | {costs['known'][name]['ns']:.0f}"
            f" | {costs['known'][name]['of_base']:.2f} |"
            for name, first in costs["new"].items()
        ),
        many="\n".join(
            f"| {row['backends']:,} | {row['ns']:,.0f} | {row['of_base']:.2f} |" for row in costs["many"]
        ),
        queued="\n".join(
            f"| `{name}` | {row['rate']:,.0f} | {row['of_base']:.2f} |"
            for name, row in data["queued"].items()
        ),
        limits=f"{costs['limits']['of_base']:.2f}",
        affinities="\n".join(
            f"| `{name}` | {row['ns']:.0f} | {row['of_base']:.2f} |"
            for name, row in costs["affinities"].items()
        ),
        hashing="\n".join(
            f"| `{name}` | {row['backends']:,} | {row['fewest']:.3f} to {row['most']:.3f} | {row['gone']}"
            f" | {row['moved']:.1%} |"
            for name, rows in data["hashing"].items()
            for row in rows
        ),
    )


def _checks(data: dict[str, Any]) -> str:
    kinds, interval_s = data["kinds"], data["interval_s"]
    rows = (
        f"| {name} | {row['per_second_and_core']:,.0f} | {row['per_second_and_core'] * interval_s:,.0f}"
        f" | {row['core']:.2f} | {row['per_second']:,.0f} | {row['on_time']:.1%}"
        f" | {row['on_time_beside_traffic']:.1%} |"
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
        ipvs_schedulers=_ipvs(data["ipvs"]) if "ipvs" in data else "",
        schedulers=_schedulers(data["schedulers"]) if "schedulers" in data else "",
        goals=goals_table(bench),
        works=table(bench),
        transfers=paper.table(data["paper"]),
        queue_p50=_times(bench, LIMITS[REWRITE_2]),
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
    pairs = (
        *((FAST, peer) for peer in (ROUTING, DNAT, HAPROXY)),
        (REDIRECT, ROUTING),
        (REWRITE_2, ROUTING),
        (CONNTRACK, DNAT),
    )
    titles = (f"{way.removeprefix('loaded-mp ').split(',')[0]}, of {peer.split()[-1]}" for way, peer in pairs)
    lines = [f"| | {' | '.join(titles).replace('(tcp)', 'HAProxy')} |", "|---" * (1 + len(pairs)) + "|"]
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
    """The data that the last run left; of some parts only where they were measured."""
    parts = [
        *PARTS,
        *(part for part in ("lvs", "checks", "ipvs", "schedulers") if (folder / f"{part}.json").exists()),
    ]
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
