"""What the commands that steer backends share."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.table import duration, named
from loaded_mp.status import ServiceStatus


def backend_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument `backend` and the option `service`."""
    option = click.option("-s", "--service", metavar="SERVICE", help="Of which service, if several have it.")
    return click.argument("backend")(option(function))


def steer(word: str, **arguments: object) -> list[ServiceStatus]:
    """Give a command about backends; what they are now. Ends the program if the daemon refuses."""
    return answer_to(word, list[ServiceStatus], **arguments)


def say(services: Iterable[ServiceStatus]) -> None:
    """Print a line for each backend."""
    for service in services:
        for each in service.backends:
            down = "" if each.up else f", down for {duration(each.since_s)}: {each.cause}"
            click.echo(
                f"{service.name} {named(each.name, each.address)}: {each.wanted},"
                f" weight {each.effective_weight}/{each.weight}, {each.flows:,} flows{down}"
            )
