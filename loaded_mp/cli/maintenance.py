"""loaded-mp maintenance: take a backend out at once."""

import click

from loaded_mp.cli.steering import backend_options, say, steer


@click.command("maintenance")
@backend_options
def command(backend: str, service: str | None) -> None:
    """Send nothing to BACKEND (a name or an address): its clients move to others with their next packet.

    Connections to it break; `drain` first, where that matters. It holds until `ready`, also over a reload and
    a restart.
    """
    say(steer("maintenance", backend=backend, service=service))
