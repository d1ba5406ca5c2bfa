"""What the commands that ask the daemon share."""

from typing import TypeVar

import click

from loaded_mp.control.client import ControlError, ask

Answer = TypeVar("Answer")


def answer_to(command: str, answer_type: type[Answer], /, **arguments: object) -> Answer:
    """What the daemon answers to a command. Ends the program if it does not, or refuses."""
    try:
        return ask(command, answer_type, **arguments)
    except ControlError as error:
        raise click.ClickException(str(error)) from None
