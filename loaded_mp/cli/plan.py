"""loaded-mp plan: print every change that a start would make to this host."""

from collections.abc import Callable

import click

from loaded_mp.cli.options import configuration_options
from loaded_mp.config.model import Config
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import planned
from loaded_mp.supervisor.daemon import worker_count
from loaded_mp.supervisor.snapshots import Ids, marks_of


@click.command("plan")
@configuration_options
def command(load: Callable[[], Config]) -> None:
    """Print every change that a start would make to this host, without doing it.

    What is printed is a shell script. Rules of other programs, and what is set already, do not show.
    """
    config = load()
    marks = marks_of(Ids().expand(config))
    try:
        click.echo(planned(config, config.first_queue, worker_count(config), marks).script())
    except NetworkError as error:
        raise click.ClickException(str(error)) from error
