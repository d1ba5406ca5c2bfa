"""loaded-mp status: what the running daemon does, in one screen."""

from collections.abc import Iterable, Iterator

import click
from rich.console import Console
from rich.table import Table

from loaded_mp.control.client import ControlError, ask
from loaded_mp.network.tracking import FULL_PERCENT
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import BackendStatus, ServiceStatus, Status, Wanted, WorkerStatus

#: Columns where there is no terminal that says how many it has.
_PLAIN_WIDTH = 160


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(as_json: bool) -> None:
    """Show what the running daemon does: who is served by whom, workers, what was not balanced."""
    try:
        now = ask("status", Status)
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(now.model_dump_json(indent=2))
        return
    console = Console(highlight=False, emoji=False)  # 2001:db8::b:1 has no emoji in it
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    show(console, now)


def show(console: Console, now: Status) -> None:
    """Print a status so that it fits the console."""
    console.print(services_table(console, now))
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
        age = _duration(now.counters_age_s)
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
                yield f"down: {service.name} {_name(each)} for {_duration(each.since_s)}: {each.cause}"


def _duration(seconds: float) -> str:
    """The two largest units of it."""
    days, rest = divmod(int(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, whole = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (whole, "s")]
    first = next((place for place, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])


def services_table(console: Console, now: Status) -> Table:
    """Services and their backends, with the share of each in all flows so far, and by its weight.

    Where the console is too narrow for all of it, shares and packets are left out.
    """
    whole = _whole_table(now)
    room = console.options.update_width(_PLAIN_WIDTH)
    return whole if console.measure(whole, options=room).maximum <= console.width else _narrow_table(now)


def _whole_table(now: Status) -> Table:
    table = Table("service", "backend", "state", box=None, pad_edge=False)
    for column in ("weight", "flows", "new", "share (wanted)", "to backend", "to client"):
        table.add_column(column, justify="right")
    for service in now.services:
        for vip in service.vips:
            table.add_row(service.name, vip, "VIP", style="bold")
        for backends in _families(service):
            given = sum(each.counters["new_flows"] for each in backends) or 1
            weights = sum(each.weight for each in backends) or 1
            for each in backends:
                new = each.counters["new_flows"]
                table.add_row(
                    "",
                    _name(each),
                    _state(each),
                    f"{each.effective_weight}/{each.weight}",
                    f"{each.flows:,}",
                    f"{new:,}",
                    f"{100 * new / given:.0f} ({100 * each.weight / weights:.0f}) %",
                    _traffic(each, "to_backend"),
                    _traffic(each, "to_client"),
                )
    return table


def _narrow_table(now: Status) -> Table:
    """An address too long for its column stands under the name, or on two lines; it is never cut."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("backend", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("weight", "flows", "new", "to\nbackend", "to\nclient"):
        table.add_column(column, justify="right", no_wrap=True)
    for service in now.services:
        table.add_row(f"service {service.name}", style="bold")
        for vip in service.vips:
            table.add_row(vip, "VIP", style="bold")
        for backends in _families(service):
            for each in backends:
                table.add_row(
                    _name(each),
                    _state(each),
                    f"{each.effective_weight}/{each.weight}",
                    f"{each.flows:,}",
                    f"{each.counters['new_flows']:,}",
                    _size(each.counters["to_backend_bytes"]),
                    _size(each.counters["to_client_bytes"]),
                )
    return table


def _families(service: ServiceStatus) -> Iterable[list[BackendStatus]]:
    """The backends of each family: only they share flows."""
    for separator in (".", ":"):
        yield [each for each in service.backends if separator in each.address]


def _name(backend: BackendStatus) -> str:
    return backend.name if backend.name == backend.address else f"{backend.name} {backend.address}"


def _state(backend: BackendStatus) -> str:
    """Whether it is down; else what the operator wants of it, if that is not the usual."""
    if not backend.up:
        return "[bold red]down[/]"
    return "[green]up[/]" if backend.wanted is Wanted.READY else f"[yellow]{backend.wanted}[/]"


def _traffic(backend: BackendStatus, direction: str) -> str:
    counters = backend.counters
    return f"{counters[f'{direction}_packets']:,} p {_size(counters[f'{direction}_bytes'])}"


def _size(octets: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if octets < 999.5:  # not "1e+03 B"
            return f"{octets:.3g} {unit}"
        octets /= 1000
    return f"{octets:.3g} TB"


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
