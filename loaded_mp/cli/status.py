"""loaded-mp status: what the running daemon does, in one screen."""

from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.table import duration, named, narrowed, services_text
from loaded_mp.network.tracking import FULL_PERCENT
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import FastPathStatus, Status, WorkerStatus

#: Columns where there is no terminal that says how many it has.
_PLAIN_WIDTH = 160


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument `service` and the options `backend` and `idle`, as `chosen` takes them."""
    backend = click.option(
        "-b", "--backend", default="", metavar="TEXT", help="Backends whose name or address contains it."
    )
    idle = click.option(
        "--idle", is_flag=True, help="Backends that get no new flows: down, drained, of weight 0."
    )
    return click.argument("service", required=False)(backend(idle(function)))


def chosen(service: str | None, backend: str, idle: bool) -> Status:
    """The status with those services and backends alone. Ends the program if the daemon does not answer."""
    return narrowed(answer_to("status", Status, service=service), backend, idle)


@click.command("status")
@choice_options
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--ipvsadm", "as_ipvsadm", is_flag=True, help="As ipvsadm -L -n, then with --stats and --rate.")
def command(service: str | None, backend: str, idle: bool, as_json: bool, as_ipvsadm: bool) -> None:
    """Show what the running daemon does: who is served by whom, workers, what was not balanced.

    With SERVICE only that one. Figures of a backend are totals, and below them those of a second, as they
    were within the last five. A weight is the one that it has now and the configured one.
    """
    now = chosen(service, backend, idle)
    if as_json:
        click.echo(now.model_dump_json(indent=2))
    elif as_ipvsadm:
        from loaded_mp.cli.ipvsadm import ipvsadm  # noqa: PLC0415 (it needs the schedulers, and these numpy)

        click.echo("\n".join(ipvsadm(now)))
    else:
        show(a_console(), now)


def a_console() -> Console:
    """Where tables are printed."""
    console = Console(highlight=False, emoji=False)  # 2001:db8::b:1 has no emoji in it
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _fast_path(fast_path: FastPathStatus) -> str:
    """Whether the kernel repeats what workers have decided, in a line."""
    if not fast_path.interfaces:
        return f"fast path: off: {fast_path.why_not}"
    repeated = fast_path.counters["to_backend"] + fast_path.counters["to_client"]
    redirected = fast_path.counters["redirected"]
    past = f", {redirected:,} of them past the firewall" if redirected else ""
    but = f"; not on {fast_path.why_not}" if fast_path.why_not else ""
    on = ", ".join(fast_path.interfaces)
    return f"fast path ({fast_path.mode}): {repeated:,} packets passed by the queues on {on}{past}{but}"


def show(console: Console, now: Status) -> None:
    """Print a status so that it fits the console."""
    console.print(services_text(now.services), end="", soft_wrap=True)
    for line in _down(now):
        console.print(line, style="bold red", markup=False)
    console.print(_workers_table(now))
    for each in now.workers:
        if drops := _listed(_drops(each)):
            console.print(f"dropped in queue {each.queue}: {drops}", style="bold red")
    table = now.flow_table
    console.print(
        f"flow table: {table.used:,} of {table.capacity:,} flows, {table.counters['evictions']:,} evicted;"
        f" {table.memory_bytes / (1 << 20):.0f} MiB shared"
    )
    console.print(_fast_path(now.fast_path), soft_wrap=True, markup=False)
    for name, why in now.fast_path.not_redirected.items():
        console.print(f"service {name} is not redirected: {why}", markup=False)
    if now.tracked:
        tracked = now.tracked
        console.print(
            f"conntrack: {tracked.connections:,} of {tracked.limit:,} connections, {tracked.percent} % full",
            style="bold red" if tracked.percent >= FULL_PERCENT else None,
        )
    expected = {reason: count for reason, count in now.reasons.items() if not _must_be_zero(reason)}
    console.print(f"not balanced: {_listed(expected) or 'nothing'}")
    unsent = sum(each.counters["unsent_verdicts"] for each in now.workers)
    alarming = {name: count for name, count in now.reasons.items() if name not in expected}
    if faults := _listed(alarming | {"unsent_verdicts": unsent}):
        console.print(f"must be zero: {faults}", style="bold red")
    if now.drifts_mended:
        times = f"{now.drifts_mended:,} times"
        console.print(f"network set-up: put back {times}; the log says what", style="yellow")
    if now.counters_fault:
        age = duration(now.counters_age_s)
        console.print(
            f"what the kernel's rules count was last read {age} ago: {now.counters_fault}",
            style="bold red",
            markup=False,
        )
    console.print(f"loaded-mp {now.version}, up {now.uptime_s:,.0f} s, generation {now.generation}")


def _must_be_zero(reason: str) -> bool:
    """Whether packets with this reason (lower case) say that loaded-mp itself is at fault."""
    return Reason[reason.upper()].must_be_zero


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _down(now: Status) -> Iterator[str]:
    """A line for each backend that is down: for how long, and why."""
    for service in now.services:
        for each in service.backends:
            if not each.up:
                name = named(each.name, each.address)
                yield f"down: {service.name} {name} for {duration(each.since_s)}: {each.cause}"


def _drops(worker: WorkerStatus) -> dict[str, int]:
    """Packets dropped by cause."""
    return {
        "queue full": worker.queue_drops,
        "socket full": worker.socket_drops,
        "over their client's share": worker.over_share,
    }


def _workers_table(now: Status) -> Table:
    table = Table("worker", "queue", "pid", "core", box=None, pad_edge=False)
    for column in ("packets", "a batch", "waiting", "dropped", "restarts"):
        table.add_column(column, justify="right")
    for each in now.workers:
        dropped = sum(_drops(each).values())
        packets = each.counters["packets"]
        table.add_row(
            str(each.number),
            str(each.queue),
            str(each.pid) if each.pid else "[bold red]none[/]",
            "any" if each.core is None else str(each.core),
            f"{packets:,}",
            f"{packets / max(each.counters['batches'], 1):.1f}",
            str(each.queue_waiting),
            f"[bold red]{dropped:,}[/]" if dropped else "0",
            str(each.restarts),
        )
    return table
