"""loaded-mp whatif: what would become of flows."""

from collections.abc import Iterator
from textwrap import wrap

import click

from loaded_mp.cli.asking import slow_answer_to
from loaded_mp.cli.table import named
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.flags import read_backend
from loaded_mp.fields import MAX_WEIGHT
from loaded_mp.status import TRIED_FLOWS, Forecast, MoveStatus, ServiceForecast

#: Of many backends the first are shown.
_SHOWN = 30
_LITTLE = 1e-6
_FIRST_WIDTH = 37
#: Of flows now and then, and of shares.
_WIDTHS = (12, 9, 11, 9)


@click.command("whatif")
@click.option(
    "--weight",
    "weights",
    metavar="BACKEND=N",
    multiple=True,
    callback=lambda _, __, all_: _weights(all_),
    help="With this weight for a backend; may be repeated, as may the next two.",
)
@click.option("--without", metavar="BACKEND", multiple=True, help="Without a backend, as if it were removed.")
@click.option(
    "--add",
    "added",
    metavar="ADDRESS[,weight=N][,name=X]",
    multiple=True,
    help="With one more backend, once it is up.",
)
@click.option("--scheduler", metavar="SCHEDULER", help="With another scheduler, or a Python file.")
@click.option("-s", "--service", metavar="SERVICE", help="Of which service, if there are several.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(
    weights: dict[str, int],
    without: tuple[str, ...],
    added: tuple[str, ...],
    scheduler: str | None,
    service: str | None,
    as_json: bool,
) -> None:
    """Say how many flows would move, and from where to where, and which share of new flows each backend would
    get. This changes nothing.

    A flow stays with its backend as long as that is usable, whatever weights and schedulers are. So only
    flows of backends that leave move; TCP connections do not go on there.

    \b
    Examples:
      loaded-mp whatif --without web1
      loaded-mp whatif --weight web1=3 --weight web2=0
      loaded-mp whatif --add 10.0.0.4,weight=2 --scheduler mh -s web
    """
    try:
        add = [read_backend(text) for text in added]
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    asked = {"weights": weights, "without": without, "add": add, "scheduler": scheduler, "service": service}
    found = slow_answer_to("whatif", Forecast, "the flow table is large", **asked)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(lines(found)))


def _weights(texts: tuple[str, ...]) -> dict[str, int]:
    weights = {}
    for text in texts:
        backend, _, number = text.rpartition("=")
        if not backend or not number.isdecimal() or int(number) > MAX_WEIGHT:
            raise click.BadParameter(f"found {text!r}, expected BACKEND=N, N from 0 to {MAX_WEIGHT}")
        weights[backend] = int(number)
    return weights


def lines(found: Forecast) -> list[str]:
    """A forecast for a screen of 80 columns."""
    indent = " " * 8
    return [
        part
        for line in _lines(found)
        for part in wrap(line, 80, subsequent_indent=indent, break_on_hyphens=False)
    ]


def _lines(found: Forecast) -> Iterator[str]:
    if not found.services:
        yield "nothing would change, neither for open flows nor for new ones"
        return
    for service in found.services:
        yield from _service(service)
    ends = f", {_flows(found.ends)} would end" if found.ends else ""
    moves = (
        f"{_flows(found.moves)} would move, each with its next packet"
        if found.moves
        else "no flow would move"
    )
    yield f"{moves}{ends}; nothing was changed"


def _service(service: ServiceForecast) -> Iterator[str]:
    yield f"service {service.service}, IPv{service.family}, scheduler {service.scheduler}"
    for move in service.moves:
        yield f"  {_move(move)}"
    if service.moves:
        yield f"  {_EXACT if service.exact else _EXPECTED}"
    else:
        yield "  no flow would move: each stays with its backend"
    if service.homeless:
        yield f"  {_flows(service.homeless)} of backends that are not usable move anyway"
    yield _row("", "open flows", "", "new flows", "")
    yield _row("  backend", "now", "then", "now", "then")
    for each in service.spread[:_SHOWN]:
        figures = (_count(each.flows), _count(each.flows_then), _share(each.share), _share(each.share_then))
        yield from _row(f"  {named(each.name, each.address)}", *figures).splitlines()
    if len(service.spread) > _SHOWN:
        yield f"  and {len(service.spread) - _SHOWN:,} more; --json shows all"
    nowhere = 1 - sum(each.share_then or 0 for each in service.spread)
    if any(each.share_then is not None for each in service.spread) and nowhere > _LITTLE:
        yield f"  {nowhere:.1%} of new flows would find no backend"
    if service.by_open_flows:
        yield f"  new flows: of the next {TRIED_FLOWS:,}, if none ends, as open ones decide"
    if service.elsewhere is not None:
        yield f"  {service.elsewhere:.1%} of all clients that are new would get another backend than now"


_EXACT = "exact: each goes where the hash of its client says"
_EXPECTED = "how many: exact; where to: if no others come or end meanwhile"


def _move(move: MoveStatus) -> str:
    to = named(move.to_backend, move.to_address) if move.to_backend else "nowhere: none gets new flows"
    return f"{_flows(move.flows)} from {named(move.backend, move.address)} to {to}"


def _row(first: str, *figures: str) -> str:
    """A name that is too long for its column has a line of its own."""
    cells = "".join(f"{each:>{width}}" for each, width in zip(figures, _WIDTHS, strict=True))
    return (
        f"{first}\n{'':{_FIRST_WIDTH}}{cells}"
        if len(first) > _FIRST_WIDTH
        else f"{first:{_FIRST_WIDTH}}{cells}"
    )


def _count(flows: int | None) -> str:
    return "-" if flows is None else f"{flows:,}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _flows(count: int) -> str:
    return "1 flow" if count == 1 else f"{count:,} flows"
