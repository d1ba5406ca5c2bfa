"""loaded-mp events: what has changed, and why."""

import time
from collections.abc import Iterable

import click

from loaded_mp.control.client import ControlError, ask
from loaded_mp.status import Event

#: How long one question waits for an answer; who asks again and again waits a little between.
_WAIT_S, _PAUSE_S = 5.0, 0.2
#: A daemon that begins anew is silent for a while.
_PATIENCE_S = 60.0
_COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}


@click.command("events")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C, also over a restart.")
@click.option("-s", "--service", default="", metavar="SERVICE", help="Only those of one service.")
@click.option("-n", "--last", type=click.IntRange(0), metavar="N", help="Only the last N of those so far.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, a line each.")
def command(follow: bool, service: str, last: int | None, as_json: bool) -> None:
    """Show the last 1,000 changes with their causes, the latest at the end; times are local."""
    try:
        events = ask("events", list[Event])
        number = events[-1].number if events else 0
        chosen = [each for each in events if service in ("", each.service)]
        _print(chosen if last is None else chosen[len(chosen) - min(last, len(chosen)) :], as_json)
        while follow:
            time.sleep(_PAUSE_S)
            if events := _next(number):
                number = events[-1].number
                _print((each for each in events if service in ("", each.service)), as_json)
    except ControlError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        return


def _next(number: int) -> list[Event]:
    """What came after an event; asked again for a while if nobody answers. Raises ControlError."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask("events", list[Event], after=number, wait_s=_WAIT_S)
        except ControlError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_PAUSE_S)


def _print(events: Iterable[Event], as_json: bool) -> None:
    for each in events:
        click.echo(each.model_dump_json() if as_json else _line(each))


def _line(each: Event) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time_s))
    name = click.style(each.event, fg=_COLOURS.get(each.level))
    who = f"{each.service} {each.backend}".strip()
    more = " ".join(f"{key}={value}" for key, value in each.more.items())
    about = f"{who} {more}".strip()
    cause = f": {each.cause}" if each.cause else ""
    return f"{moment} {name} {about}".rstrip() + cause
