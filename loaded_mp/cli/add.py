"""loaded-mp add: one more backend while the daemon runs."""

import click

from loaded_mp.cli.outcome import change, show
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.flags import read_backend


@click.command("add")
@click.argument("service")
@click.argument("backend", metavar="ADDRESS[,weight=N][,name=X]")
def command(service: str, backend: str) -> None:
    """Add a backend to SERVICE of the running daemon. If it is checked, it serves after its first success.

    It outlives a reload and a restart, but not a stop: 'loaded-mp save' writes it into the file. If the
    configuration has this backend at a later reload, what it says counts.
    """
    try:
        added = read_backend(backend)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    show(change("add", service=service, backend=added), f"added {added.address}")
