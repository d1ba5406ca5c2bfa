"""loaded-mp restart: let the running daemon become the program that is installed now."""

import sys
import time

import click

from loaded_mp.control.client import ControlError, ask
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.status import Status
from loaded_mp.supervisor.machine_code import load_machine_code

_DEADLINE_S = 60.0
_POLL_S = 0.2


@click.command("restart")
def command() -> None:
    """Let the running daemon become the program that is installed now, with its configuration as it is now.

    Connections go on: workers serve until the new ones take their places. This command is of the program as
    it is now: if that cannot compile, or the configuration has mistakes, the old one stays.
    """
    try:
        before = ask("status", Status)
        load_machine_code(new_shared_memory(1_024, 1), lambda name, seconds: None)
        mistakes = ask("restart", list[str])
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    for mistake in mistakes:
        click.echo(mistake, err=True)
    if mistakes:
        click.echo("the old program stays", err=True)
        sys.exit(1)
    now = _again({each.pid for each in before.workers})
    click.echo(f"restarted: loaded-mp {now.version}, {len(now.workers)} workers")


def _again(old: set[int]) -> Status:
    """The status once none of the old workers serves any more."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while True:
        try:
            now = ask("status", Status)
            if old.isdisjoint(each.pid for each in now.workers):
                return now
        except ControlError as error:
            if time.monotonic() > deadline_s:
                raise click.ClickException(str(error)) from None
        if time.monotonic() > deadline_s:
            raise click.ClickException("the daemon did not begin anew; its log says why")
        time.sleep(_POLL_S)
