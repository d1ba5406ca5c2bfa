"""From raw rounds to tables: every figure beside its ratios to routing, HAProxy and DNAT, and the goals."""

from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

ROUTING, HAPROXY, DNAT = "routing", "HAProxy (tcp)", "iptables DNAT"
REWRITE_1, REWRITE_2 = "loaded-mp rewrite, 1 worker", "loaded-mp rewrite, 2 workers"
FAST, REDIRECT = "loaded-mp fast path, 2 workers", "loaded-mp redirect, 2 workers"
CONNTRACK = "loaded-mp conntrack, 2 workers"
#: What a way of ours would reach if it did nothing itself.
LIMITS = {
    REWRITE_1: "queue alone, 1 worker",
    REWRITE_2: "queue alone, 2 workers",
    FAST: "hooks alone",
}


@dataclass(frozen=True)
class Goal:
    """What a ratio shall be: at least `ratio`, or at most where less is better."""

    work: str
    path: str
    peer: str
    ratio: float
    cpu: bool = False  #: of the cores' time for the same work, not of the figure


GOALS = (
    Goal("bulk-1", REWRITE_2, ROUTING, 0.4),
    Goal("bulk-1", REWRITE_2, HAPROXY, 1.0),
    Goal("bulk-4x4", REWRITE_2, ROUTING, 0.35),
    Goal("bulk-4x4", REWRITE_2, HAPROXY, 0.8),
    Goal("http", REWRITE_2, ROUTING, 0.5),
    Goal("http", REWRITE_2, HAPROXY, 1.2),
    Goal("new", REWRITE_2, DNAT, 0.85),
    Goal("new", REWRITE_2, HAPROXY, 1.3),
    Goal("udp", REWRITE_1, ROUTING, 0.75),
    Goal("http-p99", REWRITE_2, ROUTING, 1.5),
    Goal("http-p99", REWRITE_2, HAPROXY, 1.0),
    Goal("bulk-1", FAST, DNAT, 1.0),
    Goal("bulk-1", FAST, HAPROXY, 2.0),
    Goal("bulk-4x4", FAST, DNAT, 0.97),
    Goal("bulk-4x4", FAST, HAPROXY, 2.5),
    Goal("http", FAST, DNAT, 0.97),
    Goal("http", FAST, HAPROXY, 1.4),
    Goal("http", FAST, DNAT, 1.05, cpu=True),
    Goal("new", FAST, DNAT, 0.95),
    Goal("new", FAST, HAPROXY, 1.1),
    Goal("udp", FAST, DNAT, 0.93),
    Goal("http-p50", FAST, DNAT, 1.1),
    Goal("bulk-1", REDIRECT, ROUTING, 1.0),
    Goal("bulk-4x4", REDIRECT, ROUTING, 1.0),
    Goal("http", REDIRECT, ROUTING, 1.0),
    Goal("http", REDIRECT, ROUTING, 1.0, cpu=True),
    Goal("new", REDIRECT, ROUTING, 1.0),
    Goal("udp", REDIRECT, ROUTING, 1.05),
    Goal("http-p50", REDIRECT, ROUTING, 1.05),
    Goal("bulk-1", CONNTRACK, DNAT, 0.97),
    Goal("bulk-1", CONNTRACK, HAPROXY, 1.8),
    Goal("bulk-4x4", CONNTRACK, DNAT, 0.97),
    Goal("bulk-4x4", CONNTRACK, HAPROXY, 1.8),
    Goal("http", CONNTRACK, DNAT, 0.97),
    Goal("new", CONNTRACK, DNAT, 0.85),
    Goal("udp", CONNTRACK, DNAT, 0.95),
    Goal("http-p99", CONNTRACK, DNAT, 1.1),
)


def ratio(data: dict[str, Any], work: str, path: str, peer: str, cpu: bool = False) -> float | None:
    """Median over the turns of a path's value divided by the peer's in the same turn; None: not measured.

    `cpu`: of the busy time of all cores for the same amount of work.
    """
    found = _ratios(data, work, path, peer, cpu)
    return float(median(found)) if found else None


def _ratios(data: dict[str, Any], work: str, path: str, peer: str, cpu: bool) -> list[float]:
    rounds = data["works"].get(work, {}).get("rounds", {})
    if path not in rounds or peer not in rounds:
        return []
    value = _cpu if cpu else _value
    pairs = zip(rounds[path], rounds[peer], strict=True)
    return sorted(value(mine) / value(theirs) for mine, theirs in pairs)


def interval(values: list[float]) -> tuple[float, float]:
    """Where the median of what these sorted values are a sample of lies, with a confidence of 95 %.

    That is between two of them, whatever their distribution (order statistics); with fewer than six, between
    the first and the last, and less sure.
    """
    count = len(values)
    tails = ((out, sum(comb(count, below) for below in range(out + 1))) for out in range(count // 2))
    out = max((out for out, tail in tails if tail <= 0.025 * 2**count), default=0)
    return values[out], values[-1 - out]


def _value(result: dict[str, Any]) -> float:
    return float(result["value"])


def _cpu(result: dict[str, Any]) -> float:
    return float(result["cpu_s"] / result["amount"])


def number(value: float) -> str:
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def goals_table(data: dict[str, Any]) -> str:
    """All goals that were measured as Markdown, with what the way's limit reaches in the same place."""
    lines = ["| work | way | peer | goal | reached | | limit |", "|---|---|---|---|---|---|---|"]
    for goal in GOALS:
        found = _ratios(data, goal.work, goal.path, goal.peer, goal.cpu)
        if not found:
            continue
        work = data["works"][goal.work]
        more = work["more_is_better"] and not goal.cpu
        limit = ratio(data, goal.work, LIMITS.get(goal.path, ""), goal.peer, goal.cpu)
        low, high = interval(found)
        cells = (
            work["title"] + (", CPU" if goal.cpu else ""), goal.path.removeprefix("loaded-mp "), goal.peer,
            f"{'≥' if more else '≤'} {goal.ratio:g}", f"{median(found):.2f} ({low:.2f} to {high:.2f})",
            _verdict(goal.ratio, more, median(found), high if more else low),
            "" if limit is None else f"{limit:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(goal: float, more: bool, reached: float, best: float) -> str:
    """Whether a goal is met; `best`: what may have been reached, as far as the turns differ."""

    def enough(ratio: float) -> bool:
        return round(ratio, 2) >= goal if more else round(ratio, 2) <= goal

    return "yes" if enough(reached) else "maybe" if enough(best) else "**no**"


def shares_table(data: dict[str, Any]) -> str:
    """Every figure as a share of routing's, as Markdown: a row for each work, a column for each path."""
    every = dict.fromkeys(way for work in data["works"].values() for way in work["rounds"])
    ways = [way for way in every if way != ROUTING]
    lines = [f"| of routing | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    for key, work in data["works"].items():
        title = work["title"] + ("" if work["more_is_better"] else " (less is better)")
        ratios = [ratio(data, key, way, ROUTING) for way in ways]
        lines.append(f"| {title} | {' | '.join('' if each is None else f'{each:.2f}' for each in ratios)} |")
    return "\n".join(lines)


def table(data: dict[str, Any]) -> str:
    """The whole run as Markdown."""
    lines = []
    for key, work in data["works"].items():
        better = "more is better" if work["more_is_better"] else "less is better"
        lines += [
            f"### {work['title']} ({work['unit']}, {better})",
            "",
            "| path | median (lowest to highest) | of routing | of HAProxy | of DNAT | CPU s |",
            "|---|---|---|---|---|---|",
        ]
        for path, rounds in work["rounds"].items():
            values = [each["value"] for each in rounds]
            spread = f"{number(median(values))} ({number(min(values))} to {number(max(values))})"
            ratios = [ratio(data, key, path, peer) for peer in (ROUTING, HAPROXY, DNAT)]
            cells = [f"{each:.2f}" if each is not None else "" for each in ratios]
            cpu = [_cpu(each) for each in rounds if each["amount"]]
            cells.append(f"{median(cpu):.3g}" if cpu else "")
            lines.append(f"| {path} | {spread} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
