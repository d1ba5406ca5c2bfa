"""What the commands that ask the daemon share."""

from typing import TypeVar

import click

from loaded_mp.control.client import ControlError, ask, ask_for_long

Answer = TypeVar("Answer")


def answer_to(command: str, answer_type: type[Answer], /, **arguments: object) -> Answer:
    """What the daemon answers to a command. Ends the program if it does not, or refuses."""
    try:
        return ask(command, answer_type, **arguments)
    except ControlError as error:
        raise click.ClickException(str(error)) from None


def slow_answer_to(command: str, answer_type: type[Answer], why: str, /, **arguments: object) -> Answer:
    """As `answer_to`, for a command that may take its time: then people are told `why`."""

    def say() -> None:
        click.echo(f"still under way: {why}", err=True)

    try:
        return ask_for_long(command, answer_type, say, **arguments)
    except ControlError as error:
        raise click.ClickException(str(error)) from None
