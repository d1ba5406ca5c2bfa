"""loaded-mp weight: give a backend another share."""

import click

from loaded_mp.cli.steering import backend_options, say, steer
from loaded_mp.fields import MAX_WEIGHT


@click.command("weight")
@backend_options
@click.argument("weight", metavar="N|default", callback=lambda _, __, text: _number(text))
def command(backend: str, weight: int | None, service: str | None) -> None:
    """Give BACKEND (a name or an address) the weight N among new clients, or the configured one again.

    It holds until another one is given, also over a reload and a restart. Clients that it has stay.
    """
    say(steer("weight", backend=backend, weight=weight, service=service))


def _number(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal() or int(text) > MAX_WEIGHT:
        raise click.BadParameter(f"expected a number from 0 to {MAX_WEIGHT}, or default")
    return int(text)
