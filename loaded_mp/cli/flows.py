"""loaded-mp flows: which client has which backend."""

from ipaddress import ip_address

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.table import named
from loaded_mp.control.commands import MOST_FLOWS
from loaded_mp.fields import Endpoint
from loaded_mp.status import FlowsStatus, FlowStatus


@click.command("flows")
@click.option("--source", metavar="ADDRESS", help="Only those of a client, or of a network of them.")
@click.option("--backend", metavar="BACKEND", help="Only those of a backend, by its name or address.")
@click.option("-s", "--service", metavar="SERVICE", help="Only those of one service.")
@click.option("--count", is_flag=True, help="Only say how many there are.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(source: str | None, backend: str | None, service: str | None, count: bool, as_json: bool) -> None:
    """Show which client has which backend, and for how long still if no packet comes.

    Where connections are flows (affinity = "connection"), each with its client's port and what it asks for.

    A flow of which only one packet came is forgotten first (unconfirmed_s): whether that is so cannot be told
    of one that has less time left than that.
    """
    most = 0 if count else MOST_FLOWS
    found = answer_to("flows", FlowsStatus, source=source, backend=backend, service=service, most=most)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    elif count:
        click.echo(found.total)
    else:
        show(found)


def show(found: FlowsStatus) -> None:
    """Print flows, one a line, by service."""
    service = ""
    for each in found.flows:
        if each.service != service:
            service = each.service
            click.echo(f"service {service}")
        click.echo(_line(each))
    if len(found.flows) < found.total:
        click.echo(
            f"these are {len(found.flows):,} of {found.total:,}; see fewer with --source, --backend or -s"
        )
    elif not found.total:
        click.echo("there are no such flows")


def _line(flow: FlowStatus) -> str:
    to = named(flow.backend, flow.address)
    unsure = "" if flow.confirmed else ", may be unconfirmed"
    left = f"{flow.left_s:,} s left{unsure}"
    line = f"  {_who(flow):<15} -> {to:<26} {left}"
    return line if len(line) <= 80 else f"  {_who(flow)}\n    -> {to}\n    {left}"


def _who(flow: FlowStatus) -> str:
    """Whose flow it is: `198.51.100.7`, or of one connection `198.51.100.7:40112 tcp/80`."""
    if flow.source_port is None:
        return f"{flow.source} {flow.protocol}".strip()
    asked = flow.protocol if flow.protocol == "icmp" else f"{flow.protocol}/{flow.port}"
    return f"{Endpoint(ip_address(flow.source), flow.source_port)} {asked}"
