"""The figures of docs/performance, drawn from the data of the last run, each as SVG and PNG."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from bench.paper import ECHO_BYTES, PAPER_MEAN, PAPER_SECONDS, WRITE_BYTES, mean_seconds, rate_mb_s
from bench.report import (
    CONNTRACK,
    DNAT,
    FAST,
    HAPROXY,
    REDIRECT,
    REWRITE_1,
    REWRITE_2,
    ROUTING,
    number,
    ratio,
)

mpl.use("Agg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "loaded-mp",
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)
#: One colour for each way, the same in every figure.
_COLOURS = {
    ROUTING: "#555555",
    DNAT: "#999999",
    HAPROXY: "#d28e00",
    "nginx (stream)": "#e8c06a",
    "LVS (IPVS NAT)": "#bb5566",
    "queue alone, 1 worker": "#b8d4e8",
    "queue alone, 2 workers": "#7fb2d6",
    "hooks alone": "#d9c7e6",
    REWRITE_1: "#2b7bba",
    REWRITE_2: "#0b4f8a",
    "loaded-mp rewrite, 4 workers": "#062a4a",
    FAST: "#8e44ad",
    REDIRECT: "#c39bd3",
    CONNTRACK: "#2a9d5c",
}
_SHARES = ("bulk-1", "bulk-4x4", "http", "new", "udp")


def _save(figure: Any, folder: Path, name: str) -> None:
    figure.tight_layout()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)


def shares(data: dict[str, Any], folder: Path) -> None:
    """Each way's throughput as a share of plain routing."""
    ways = [way for way in data["works"]["bulk-1"]["rounds"] if way != ROUTING]
    figure, axes = plt.subplots(figsize=(10, 4.2))
    width = 0.8 / len(ways)
    for place, way in enumerate(ways):
        found = [(row, ratio(data, work, way, ROUTING)) for row, work in enumerate(_SHARES)]
        bars = [(row + (place - len(ways) / 2 + 0.5) * width, share) for row, share in found if share]
        axes.bar([x for x, _ in bars], [y for _, y in bars], width, label=way, color=_COLOURS.get(way))
    axes.axhline(1, color=_COLOURS[ROUTING], linewidth=1)
    axes.set_xticks(
        range(len(_SHARES)), [data["works"][work]["title"].replace(", ", ",\n") for work in _SHARES]
    )
    axes.set_ylabel("share of plain routing")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    _save(figure, folder, "shares")


def _lines(
    folder: Path,
    name: str,
    x: tuple[int, ...],
    lines: dict[str, list[float]],
    labels: tuple[str, str],
    log_y: bool,
) -> None:
    figure, axes = plt.subplots(figsize=(6, 4.4))
    for way, values in lines.items():
        way_only = way.removesuffix(", IPv4").removesuffix(", IPv6")
        style = "--" if way.endswith("IPv6") else "-"
        axes.plot(x, values, style, marker="o", markersize=3, label=way, color=_COLOURS.get(way_only))
    if max(x) > 100:
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
    else:
        axes.set_xticks(x)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _save(figure, folder, name)


def _by_size(data: dict[str, Any], part: str, family: str, sizes: tuple[int, ...]) -> dict[str, list[float]]:
    return {
        way: [median(each[str(size)] for each in families[family]) for size in sizes]
        for way, families in data[part].items()
    }


def paper(data: dict[str, Any], folder: Path) -> None:
    """The paper's figures 2 to 8."""
    clients = tuple(PAPER_SECONDS)
    transfers = data["transfers"]
    ours = [way for way in (REWRITE_2, FAST) if way in transfers]
    figure, axes = plt.subplots(1, 1 + len(ours), figsize=(9, 3.4))
    for axis, title in zip(axes, ("loaded, 2004", *ours), strict=True):
        for row, number_of in enumerate(clients):
            seconds = PAPER_SECONDS[number_of]
            if title in ours:
                rounds = transfers[title]["IPv4"]
                seconds = tuple(median(each[str(number_of)][n] for each in rounds) for n in range(number_of))
            axis.bar([row + (n - number_of / 2 + 0.5) * 0.2 for n in range(number_of)], seconds, 0.18)
        axis.set_xticks(range(len(clients)), [str(each) for each in clients])
        axis.set(title=title, xlabel="clients at once", ylabel="seconds of each client")
    _save(figure, folder, "figure-2")

    times = {
        f"{way}, {family}": [mean_seconds(families[family], number_of) for number_of in clients]
        for way, families in transfers.items()
        for family in families
        if way in (ROUTING, REWRITE_2, FAST, CONNTRACK)
    }
    _lines(folder, "figure-3", clients, times, ("clients at once", "mean seconds for 488 MB"), False)

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for way in (ROUTING, HAPROXY, *ours, CONNTRACK):
        rates = [rate_mb_s(transfers[way]["IPv4"], number_of) for number_of in clients]
        alone = rates[0]
        axis.plot(
            clients, [rate / alone for rate in rates], "o-", label=way, color=_COLOURS[way], markersize=3
        )
    first = PAPER_MEAN[1][1]
    axis.plot(clients, [rate / first for _, rate in PAPER_MEAN.values()], "k:", label="loaded, 2004")
    axis.set(xlabel="clients at once", ylabel="MB/s of all, one client = 1", ylim=(0, None))
    axis.set_xticks(clients)
    axis.legend(fontsize=8)
    _save(figure, folder, "figure-4")

    echo = ("bytes of the message", "microseconds there and back")
    write = ("bytes of a write", "Gbit/s")
    for name, part, family, sizes, labels in (
        ("figure-5", "latencies", "IPv6", ECHO_BYTES, echo),
        ("figure-6", "bandwidths", "IPv6", WRITE_BYTES, write),
        ("figure-7", "latencies", "IPv4", ECHO_BYTES, echo),
        ("figure-8", "bandwidths", "IPv4", WRITE_BYTES, write),
    ):
        _lines(folder, name, sizes, _by_size(data, part, family, sizes), labels, part == "latencies")


def scale(data: dict[str, Any], folder: Path) -> None:
    """How costs grow."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    flows = {
        "packet": [(row["flows"], row["ns"]) for row in data["packets"]["flows"]],
        "one read of memory": [(row["flows"], row["read_ns"]) for row in data["lookups"]],
        "lookup": [(row["flows"], row["ns"]) for row in data["lookups"]],
    }
    curves: tuple[tuple[Any, str, str, dict[str, list[tuple[float, float]]]], ...] = (
        (axes[0, 0], "flows", "nanoseconds", flows),
        *(
            (axis, x, "nanoseconds", {"packet": [(row[x], row["ns"]) for row in data["packets"][x]]})
            for axis, x in ((axes[0, 1], "backends"), (axes[1, 0], "services"))
        ),
        (
            axes[1, 1],
            "workers",
            "millions a second, all together",
            {"lookups": [(row["workers"], row["millions_per_s"]) for row in data["workers"]]},
        ),
    )
    for axis, x, y, lines in curves:
        several = len(lines) > 1
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), "o-", label=label, markersize=3)
        # Lines may run close to each other: the numbers of the lowest stand below it.
        for together in zip(*lines.values(), strict=True):
            for point in together:
                above = -10 if several and point == min(together) else 5
                axis.annotate(
                    number(point[1]), point, textcoords="offset points", xytext=(0, above), fontsize=7
                )
        axis.set_xscale("log", base=2 if x == "workers" else 10)
        if x == "workers":
            axis.set_xticks([row[x] for row in data["workers"]], [str(row[x]) for row in data["workers"]])
        axis.set(xlabel=x, ylabel=y, ylim=(0, None))
        if several:
            axis.set(yscale="log", ylim=(1, None))
        axis.legend(fontsize=8)
    _save(figure, folder, "scale")


DRAWN: dict[str, Callable[[dict[str, Any], Path], None]] = {"bench": shares, "paper": paper, "scale": scale}
