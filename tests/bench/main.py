"""Measures loaded-mp beside its peers: `python tests/bench/main.py [--quick] [--out FOLDER]`.

All paths stand at once and take turns within each round, so that a noisy moment hits all of them. Each round
builds them anew: a path can be a few percent faster or slower than its twin for as long as it stands.
"""

import contextlib
import json
import os
import platform
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.paths import Builder, Way, all_paths
from bench.report import goals_table, table
from bench.works import Work, all_works
from loaded_mp.lab.interrupt import interrupt_on_signals


def chosen(quick: bool, only: Collection[str]) -> list[Work]:
    """The works of these names, or all; if it has to be quick fewer, and each once in a round."""
    works = [work for work in all_works() if not only or work.measures[0].key in only]
    return [replace(work, times=1) for work in works if work.quick] if quick else works


def measure_all(
    works: Sequence[Work], builders: Sequence[Builder], rounds: int, seconds: int
) -> dict[str, Any]:
    """Every work on every path, as it goes into the JSON file."""
    data: dict[str, Any] = {
        "machine": {
            "kernel": platform.release().split("-")[0],
            "cores": os.cpu_count(),
        },
        "rounds": rounds,
        "seconds": seconds,
        "works": {},
    }
    for work in works:
        for measure in work.measures:
            data["works"][measure.key] = {
                "title": measure.title,
                "unit": measure.unit,
                "more_is_better": measure.more_is_better,
                "rounds": {},
            }
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=rounds * sum(work.times for work in works))
        for number in range(1, rounds + 1):
            progress.update(task, description=f"round {number}: building all paths")
            with contextlib.ExitStack() as stack:
                paths = [stack.enter_context(path()) for path in builders]
                for path in paths:
                    stack.enter_context(path.paused())
                for work in works:
                    for _ in range(work.times):
                        progress.update(task, description=f"round {number}: {work.measures[0].title}")
                        _measure(work, paths, seconds, data["works"])
                        progress.advance(task)
            if not console.is_terminal:
                print(f"measured: round {number} of {rounds}", file=sys.stderr, flush=True)
    return data


def _measure(work: Work, paths: list[Way], seconds: int, found: dict[str, Any]) -> None:
    """One round of a work on each path, added to what was `found`."""
    for path in paths:
        if work.udp and not path.udp:
            continue
        with path.turn():
            done = work.run(path, seconds)
        for measure, result in zip(work.measures, done, strict=True):
            found[measure.key]["rounds"].setdefault(path.name, []).append(asdict(result))


@click.command()
@click.option("--quick", is_flag=True, help="A look of about two minutes.")
@click.option("--rounds", type=click.IntRange(min=1), help="Default: 5, quick 2.")
@click.option("--seconds", type=click.IntRange(min=1), default=1, help="Of each measurement. Default: 1.")
@click.option(
    "--work",
    "only",
    type=click.Choice([work.measures[0].key for work in all_works()]),
    multiple=True,
    help="Only this, and leave what else --out has; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write bench.json there.")
def main(quick: bool, rounds: int | None, seconds: int, only: tuple[str, ...], out: Path | None) -> None:
    """Measure loaded-mp beside routing, iptables DNAT, HAProxy and nginx."""
    interrupt_on_signals()
    data = measure_all(chosen(quick, only), all_paths(quick), rounds or (2 if quick else 5), seconds)
    print(table(data))
    print(goals_table(data))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "bench.json"
        if only and file.exists():
            data["works"] = json.loads(file.read_text())["works"] | data["works"]
        file.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
