"""loaded-mp demo: the main job on real traffic, in a network of namespaces."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from loaded_mp.cli.table import services_text
from loaded_mp.lab import demo as steps
from loaded_mp.lab.interrupt import interrupt_on_signals
from loaded_mp.lab.lab import VIPS, Lab
from loaded_mp.status import Status

_REFRESH_S = 0.5


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the network standing until Ctrl-C, to play with.")
def command(keep: bool) -> None:
    """Build a test network, balance real traffic through it, and clean up.

    Needs root. On a terminal it shows one live screen; otherwise it prints a line for each step. The exit
    status is 1 if a step did not show what it should.
    """
    if os.geteuid():
        raise click.ClickException("the demo makes network namespaces, which needs root: use sudo")
    interrupt_on_signals()
    console = Console(highlight=False, emoji=False)  # 2001:db8::b:1 has no emoji in it
    demo = steps.Demo()
    try:
        with (_screen if console.is_terminal else _lines)(console, demo), steps.standing(demo):
            steps.traffic(demo)
            if keep and demo.lab and demo.daemon:
                _keep(console, demo.lab)
            steps.stop(demo)
    except KeyboardInterrupt:
        click.echo("interrupted; the network is removed", err=True)
        sys.exit(1)
    failed = sum(not step.passed for step in demo.steps)
    click.echo(f"{len(demo.steps)} steps, {failed or 'none'} failed; the machine is as it was")
    sys.exit(1 if failed else 0)


@contextmanager
def _lines(_console: Console, demo: steps.Demo) -> Iterator[None]:
    """A line when a step begins, and one when it ends."""

    def say() -> None:
        step = demo.steps[-1]
        if step.passed is None:
            click.echo(f"... {step.title}")
        else:
            click.echo(f"{'ok ' if step.passed else 'BAD'} {step.title}: {step.outcome}")

    demo.changed = say
    yield


@contextmanager
def _screen(console: Console, demo: steps.Demo) -> Iterator[None]:
    """One screen, drawn by a thread: the steps run in the main thread, where Ctrl-C arrives."""
    over = threading.Event()
    with Live(console=console, auto_refresh=False, transient=False) as live:

        def redraw() -> None:
            while not over.wait(_REFRESH_S):
                live.update(_picture(console, demo), refresh=True)

        drawing = threading.Thread(target=redraw)
        drawing.start()
        try:
            yield
        finally:
            over.set()
            drawing.join()
            live.update(_summary(demo), refresh=True)


def _picture(console: Console, demo: steps.Demo) -> RenderableType:
    parts: list[RenderableType] = []
    status = _status(demo)
    if status:
        parts += [services_text(status.services), ""]
    parts.append(_summary(demo))
    if demo.steps and demo.steps[-1].passed is None:
        seconds = time.monotonic() - demo.steps[-1].began_s
        parts.append(f"[yellow]...[/] {demo.steps[-1].title} [dim]{seconds:.0f} s[/]")
    return Group(*parts)


def _status(demo: steps.Demo) -> Status | None:
    """What the daemon says now; None while it does not run."""
    try:
        return demo.daemon.status() if demo.daemon else None
    except (RuntimeError, OSError):
        return None


def _summary(demo: steps.Demo) -> Table:
    table = Table("", "step", "what was seen", box=None, pad_edge=False)
    for step in demo.steps:
        if step.passed is not None:
            table.add_row("[green]ok[/]" if step.passed else "[bold red]BAD[/]", step.title, step.outcome)
    return table


def _keep(console: Console, lab: Lab) -> None:
    client, balancer, backend = lab.client.name, lab.balancer.name, lab.backends[0].namespace.name
    console.print(
        f"""
The network stands. In another terminal, as root:

  ip netns exec {client} curl http://{VIPS[0]}/
  ip netns exec {client} curl --interface {lab.sources4[1]} http://{VIPS[0]}/
  ip netns exec {client} ping {VIPS[1]}
  ip netns exec {balancer} loaded-mp status
  ip netns exec {balancer} iptables -t raw -nvL
  ip netns exec {balancer} tcpdump -ni private
  kill $(ip netns pids {backend})
  pkill -9 loaded-mp-w0

Ctrl-C here removes it.""",
        markup=False,
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
