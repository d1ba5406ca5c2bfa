"""loaded-mp ready: let a backend serve again."""

import click

from loaded_mp.cli.steering import backend_options, say, steer


@click.command("ready")
@backend_options
def command(backend: str, service: str | None) -> None:
    """Let BACKEND (a name or an address) serve again after `drain` or `maintenance`, if its checks say so."""
    say(steer("ready", backend=backend, service=service))
