"""loaded-mp plan: print every change that a start would make to this host."""

from collections.abc import Callable

import click

from loaded_mp.cli.options import configuration_options
from loaded_mp.cli.outcome import change, show
from loaded_mp.config.model import Config
from loaded_mp.control.client import is_running
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.setup import read_host
from loaded_mp.plan import plan
from loaded_mp.services import TooLargeError, services_of


@click.command("plan")
@configuration_options
def command(load: Callable[[], Config]) -> None:
    """Print every change that a start would make to this host, without doing it.

    What is printed is a shell script. Rules of other programs, and what is set already, do not show. Beside a
    running daemon it prints what would change for that, as 'loaded-mp reload --dry-run' does.
    """
    config = load()
    if is_running():
        show(change("compare", config=config.model_dump(mode="json")), "dry run")
        return
    try:
        click.echo(plan(services_of(config), read_host()).script())
    except (NetworkError, TooLargeError) as error:
        raise click.ClickException(str(error)) from error
