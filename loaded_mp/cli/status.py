"""loaded-mp status: what the running daemon does, in one screen."""

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from loaded_mp.control.client import ControlError, status
from loaded_mp.status import Status

#: Columns where there is no terminal that says how many it has.
_PLAIN_WIDTH = 160


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(as_json: bool) -> None:
    """Show what the running daemon does: who is served by whom, workers, what was not balanced."""
    try:
        now = status()
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(asdict(now), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    console.print(services_table(now))
    console.print(_workers_table(now))
    table = now.flow_table
    console.print(
        f"flow table: {table.used:,} of {table.capacity:,} flows, {table.evictions:,} evicted;"
        f" {table.memory_bytes / (1 << 20):.0f} MiB shared"
    )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in now.reasons.items() if count)
    console.print(f"not balanced: {reasons or 'nothing'}")
    console.print(f"loaded-mp {now.version}, up {now.uptime_s:,.0f} s, generation {now.generation}")


def services_table(now: Status) -> Table:
    """Services and their backends, with the share of each in all flows so far, and by its weight."""
    table = Table("service", "backend", "state", box=None, pad_edge=False)
    for column in ("weight", "flows", "new", "share (wanted)", "to backend", "to client"):
        table.add_column(column, justify="right")
    for service in now.services:
        for vip in service.vips:
            table.add_row(service.name, vip, "VIP", style="bold")
        for family in (".", ":"):
            backends = [each for each in service.backends if family in each.address]
            given = sum(each.new_flows for each in backends) or 1
            weights = sum(each.weight for each in backends) or 1
            for each in backends:
                name = each.name if each.name == each.address else f"{each.name} {each.address}"
                table.add_row(
                    "",
                    name,
                    "[green]up[/]" if each.up else "[bold red]down[/]",
                    f"{each.effective_weight}/{each.weight}",
                    f"{each.flows:,}",
                    f"{each.new_flows:,}",
                    f"{100 * each.new_flows / given:.0f} ({100 * each.weight / weights:.0f}) %",
                    _traffic(each.to_backend_packets, each.to_backend_bytes),
                    _traffic(each.to_client_packets, each.to_client_bytes),
                )
    return table


def _traffic(packets: int, octets: int) -> str:
    return f"{packets:,} p {_size(octets)}"


def _size(octets: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.3g} {unit}"
        octets /= 1000
    return f"{octets:.3g} TB"


def _workers_table(now: Status) -> Table:
    table = Table("worker", "queue", "pid", "core", box=None, pad_edge=False)
    for column in ("packets", "a batch", "waiting", "dropped", "restarts"):
        table.add_column(column, justify="right")
    for each in now.workers:
        dropped = each.queue_drops + each.socket_drops
        table.add_row(
            str(each.number),
            str(each.queue),
            str(each.pid) if each.pid else "[bold red]none[/]",
            "any" if each.core is None else str(each.core),
            f"{each.packets:,}",
            f"{each.packets / max(each.batches, 1):.1f}",
            str(each.queue_waiting),
            f"[bold red]{dropped:,}[/]" if dropped else "0",
            str(each.restarts),
        )
    return table
