"""loaded-mp cleanup: take back what a daemon that crashed left on this host."""

import click

from loaded_mp.control.server import AlreadyRunningError, control_socket
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.setup import left_over, take_down
from loaded_mp.supervisor.orphans import end_orphans


@click.command("cleanup")
def command() -> None:
    """Take back what a daemon that crashed left on this host.

    The next start does the same.
    """
    try:
        with control_socket():
            orphans = end_orphans()
            found = left_over()
            take_down()
    except (AlreadyRunningError, NetworkError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("Everything is as it was before loaded-mp." if found or orphans else "Nothing was left over.")
