"""Asking the daemon for a change, and printing what came of it."""

import sys

import click

from loaded_mp.cli.asking import slow_answer_to
from loaded_mp.status import Outcome

EXIT_BAD_CONFIGURATION = 2


def change(command: str, /, **arguments: object) -> Outcome:
    """What came of a command, however long it takes; a daemon that does not answer ends the process."""
    return slow_answer_to(
        command, Outcome, "another program, such as iptables' lock, holds it up", **arguments
    )


def show(outcome: Outcome, done: str, mistaken_status: int = 1) -> None:
    """Print it and the word `done`; ends the process if there were mistakes or a restart is needed."""
    for mistake in outcome.mistakes:
        click.echo(mistake, err=True)
    if outcome.mistakes:
        click.echo("the old configuration stays", err=True)
        sys.exit(mistaken_status)
    for line in outcome.changes:
        click.echo(line)
    click.echo(done if outcome.changes else f"{done}: nothing changes")
    for setting in outcome.needs_restart:
        # Another size is another table: a restart begins it anew, and connections may break.
        how = "a stop and a start take" if setting.startswith("flows:") else "'loaded-mp restart' takes"
        click.echo(f"only {how} over {setting}", err=True)
    if outcome.needs_restart:
        sys.exit(1)
