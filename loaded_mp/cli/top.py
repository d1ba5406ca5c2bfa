"""loaded-mp top: services and backends, live."""

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.live import Live
from rich.text import Text

from loaded_mp.cli.status import a_console, choice_options, chosen
from loaded_mp.cli.table import services_text


@click.command("top")
@choice_options
@click.option("-d", "--delay", "delay_s", type=click.FloatRange(0.2, 3_600), default=1.0, show_default=True,
              metavar="SECONDS", help="From one look to the next.")  # fmt: skip
def command(service: str | None, backend: str, idle: bool, delay_s: float) -> None:
    """Show services and backends as `status` does, again and again; q or Ctrl-C ends it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("top needs a terminal; elsewhere use 'loaded-mp status'")
    picture = _picture(service, backend, idle)
    with _keys(), Live(console=a_console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(picture, refresh=True)
            if _q_pressed(delay_s):
                return
            try:
                picture = _picture(service, backend, idle)
            except click.ClickException as error:  # it may begin anew
                picture = Text(f"{error.message}\n", style="bold red")


def _picture(service: str | None, backend: str, idle: bool) -> Text:
    now = chosen(service, backend, idle)
    text = Text(f"loaded-mp {now.version}, up {now.uptime_s:,.0f} s, {now.flow_table.used:,} flows; q ends\n")
    return text.append_text(services_text(now.services))


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one as long as the context lasts."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    except KeyboardInterrupt:
        return
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _q_pressed(within_s: float) -> bool:
    """Whether q is pressed within a time, or nobody can press it any more."""
    ready, _, _ = select.select([sys.stdin], [], [], within_s)
    return bool(ready) and os.read(sys.stdin.fileno(), 1) in (b"q", b"Q", b"")
