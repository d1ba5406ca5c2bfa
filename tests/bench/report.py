"""From raw rounds to a table, with every figure beside its ratios to routing and HAProxy."""

from statistics import median
from typing import Any

ROUTING, HAPROXY, DNAT = "routing", "HAProxy (tcp)", "iptables DNAT"


def ratio(data: dict[str, Any], work: str, path: str, peer: str) -> float | None:
    """Median over the rounds of a path's value divided by the peer's in the same round."""
    rounds = data["works"][work]["rounds"]
    if path not in rounds or peer not in rounds:
        return None
    pairs = zip(rounds[path], rounds[peer], strict=True)
    return median(mine["value"] / theirs["value"] for mine, theirs in pairs)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(data: dict[str, Any]) -> str:
    """The whole run as Markdown."""
    lines = [f"{data['rounds']} rounds of {data['seconds']:g} s each; medians, spread in brackets.", ""]
    for key, work in data["works"].items():
        better = "more is better" if work["more_is_better"] else "less is better"
        lines += [
            f"### {work['title']} ({work['unit']}, {better})",
            "",
            "| path | value | of routing | of HAProxy | of DNAT | CPU s per GB or 1,000 |",
            "|---|---|---|---|---|---|",
        ]
        for path, rounds in work["rounds"].items():
            values = [each["value"] for each in rounds]
            spread = f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"
            ratios = [ratio(data, key, path, peer) for peer in (ROUTING, HAPROXY, DNAT)]
            cells = [f"{each:.2f}" if each is not None else "" for each in ratios]
            cpu = median(each["cpu_s"] / max(each["amount"], 1e-9) for each in rounds)
            lines.append(f"| {path} | {spread} | {' | '.join(cells)} | {cpu:.3g} |")
        lines.append("")
    return "\n".join(lines)
