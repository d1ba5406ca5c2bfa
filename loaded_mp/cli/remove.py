"""loaded-mp remove: one backend fewer while the daemon runs."""

import click

from loaded_mp.cli.outcome import change, show


@click.command("remove")
@click.argument("backend")
@click.option("-s", "--service", metavar="SERVICE", help="Only in this service. Default: in all.")
def command(backend: str, service: str | None) -> None:
    """Take BACKEND, a name or an address, out of the running daemon's services.

    Its clients go to the others, and both ends of its TCP connections are told that they are over. To let
    them come to their ends first, `drain` it.

    It outlives a restart. The next reload brings it back if the configuration still has it; 'loaded-mp save'
    takes it out of the file.
    """
    show(change("remove", backend=backend, service=service), f"removed {backend}")
