"""loaded-mp reload: let the running daemon read its configuration again."""

import sys

import click

from loaded_mp.cli.options import EXIT_BAD_CONFIGURATION
from loaded_mp.control.client import ControlError, ask


@click.command("reload")
def command() -> None:
    """Let the running daemon read its configuration again. With mistakes in it, the old one stays."""
    try:
        mistakes = ask("reload", list[str])
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    for mistake in mistakes:
        click.echo(mistake, err=True)
    if mistakes:
        click.echo("the old configuration stays", err=True)
        sys.exit(EXIT_BAD_CONFIGURATION)
    click.echo("reloaded")
