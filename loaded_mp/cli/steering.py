"""What the commands that steer backends share."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from loaded_mp.cli.table import duration, named
from loaded_mp.control.client import ControlError, ask
from loaded_mp.status import ServiceStatus


def backend_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument `backend` and the option `service`."""
    option = click.option("-s", "--service", metavar="SERVICE", help="Of which service, if several have it.")
    return click.argument("backend")(option(function))


def steer(word: str, **arguments: object) -> list[ServiceStatus]:
    """Give a command about backends; what they are now. Ends the program if the daemon refuses."""
    try:
        return ask(word, list[ServiceStatus], **arguments)
    except ControlError as error:
        raise click.ClickException(str(error)) from None


def say(services: Iterable[ServiceStatus]) -> None:
    """Print a line for each backend."""
    for service in services:
        for each in service.backends:
            down = "" if each.up else f", down for {duration(each.since_s)}: {each.cause}"
            click.echo(
                f"{service.name} {named(each)}: {each.wanted}, weight {each.effective_weight}/{each.weight},"
                f" {each.flows:,} flows{down}"
            )
