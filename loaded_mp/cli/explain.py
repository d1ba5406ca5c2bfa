"""loaded-mp explain: what would happen to a packet now, and why."""

from ipaddress import ip_address
from textwrap import wrap

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.table import named
from loaded_mp.fields import Endpoint
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.status import CandidateStatus, Explanation

#: Of many backends the first are shown.
_SHOWN = 30


@click.command("explain")
@click.argument("source")
@click.argument("vip")
@click.option("--protocol", default="tcp", show_default=True, help="tcp, udp, sctp, icmp or proto/NUMBER.")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="N",
              help="Destination port. Default: whatever is answered.")  # fmt: skip
@click.option("--mark", default="0", metavar="N",
              help="Netfilter mark that rules of yours have set.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(source: str, vip: str, protocol: str, port: int | None, mark: str, as_json: bool) -> None:
    """Say what would happen to a packet from the client SOURCE to VIP now, and why. This changes nothing.

    The packet begins something: a TCP connection, a query, a ping.
    """
    asked = {"source": source, "vip": vip, "protocol": protocol, "port": port, "mark": _number(mark)}
    found = answer_to("explain", Explanation, **asked)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(lines(found)))


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"found {text!r}, expected a number, as in 7 or 0x10") from None


def lines(found: Explanation) -> list[str]:
    """An explanation for a screen of 80 columns."""
    return [
        part
        for line in _lines(found)
        for part in wrap(line, 80, subsequent_indent=" " * 12, break_on_hyphens=False)
    ]


def _lines(found: Explanation) -> list[str]:
    port = f" port {found.port}" if found.port else ""
    said = [f"packet    {found.protocol} from {found.source}", f"          to {found.vip}{port}"]
    if not found.service:
        return [*said, f"service   none: {found.why}"]
    said.append(f"service   {found.service}, which listens to {found.listener}")
    flow = f"to {found.flow}, {found.flow_left_s:,} s left" if found.flow else "none: this client is new"
    said += [f"flow      {flow}", "backends  weight now, and as configured"]
    said += [_candidate(each) for each in found.candidates[:_SHOWN]]
    if len(found.candidates) > _SHOWN:
        said.append(f"          and {len(found.candidates) - _SHOWN:,} more")
    if not found.backend:
        return [*said, f"goes to   nowhere: {found.why}"]
    vip = Endpoint(ip_address(found.vip), found.port if found.backend_port else None)
    backend = Endpoint(Endpoint.read(found.address).ip, found.backend_port)
    return [
        *said,
        f"goes to   {named(found.backend, found.address)}: {found.why}",
        f"addresses (forwarding {found.forwarding})",
        *(
            f"          {each.format(vip=vip, backend=backend)}"
            for each in FORWARDINGS[found.forwarding].sends
        ),
    ]


def _candidate(each: CandidateStatus) -> str:
    left_out = f", {each.left_out}" if each.left_out else ""
    return f"          {named(each.name, each.address)}: {each.effective_weight}/{each.weight}{left_out}"
