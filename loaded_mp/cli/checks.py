"""loaded-mp checks: what checks found the last time."""

import click
from pydantic import TypeAdapter

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.table import named
from loaded_mp.status import CheckStatus

_LIST = TypeAdapter(list[CheckStatus])


@click.command("checks")
@click.argument("backend", required=False)
@click.option("-s", "--service", metavar="SERVICE", help="Only those of one service.")
@click.option("--failing", is_flag=True, help="Only those that did not pass the last time.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(backend: str | None, service: str | None, failing: bool, as_json: bool) -> None:
    """Show what checks found the last time, how long ago, and how long it took; of one BACKEND or of all."""
    found = answer_to("checks", list[CheckStatus], backend=backend, service=service)
    found = [each for each in found if not (failing and each.passed is not False)]
    if as_json:
        click.echo(_LIST.dump_json(found, indent=2))
        return
    last = ("", "", "")
    for each in found:
        if last != (last := (each.service, each.backend, each.address)):
            click.echo(f"{each.service} {named(each.backend, each.address)}")
        click.echo(f"  {_line(each)}")
    if not found:
        click.echo("no check has failed" if failing else "nothing is checked")


def _line(each: CheckStatus) -> str:
    counts = f"counts as {'up' if each.up else 'down'}"
    if each.passed is None or each.age_s is None or each.took_s is None:
        return f"not yet asked: {each.check}; {counts}"
    found = "passed" if each.passed else "FAILED"
    return (
        f"{found} {each.age_s:.1f} s ago in {each.took_s * 1000:,.1f} ms: {each.check}: {each.said}; {counts}"
    )
