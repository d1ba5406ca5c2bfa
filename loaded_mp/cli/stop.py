"""loaded-mp stop: end the running daemon."""

import time
from types import NoneType

import click

from loaded_mp.control.client import ControlError, ask, is_running
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.setup import left_over

#: Saying goodbye takes up to 60 s (goodbye_s), the rest 20 s.
_DEADLINE_S = 90.0
_POLL_S = 0.1


@click.command("stop")
def command() -> None:
    """End the running daemon, as SIGTERM does, and wait until it is gone and everything is taken back."""
    try:
        ask("stop", NoneType)
        deadline_s = time.monotonic() + _DEADLINE_S
        while is_running():
            if time.monotonic() > deadline_s:
                raise click.ClickException(f"it has not ended within {_DEADLINE_S:g} s; its log says why")
            time.sleep(_POLL_S)
        if left_over():
            raise click.ClickException(
                "it has ended, but something could not be taken back; its log says what, and"
                " 'loaded-mp cleanup' takes it back"
            )
    except (ControlError, NetworkError) as error:
        raise click.ClickException(str(error)) from None
    click.echo("stopped")
