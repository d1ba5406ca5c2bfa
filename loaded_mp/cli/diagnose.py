"""loaded-mp diagnose: whether this machine can do what a start needs, and what to do where it cannot."""

from collections.abc import Callable

import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from loaded_mp.cli.options import DEFAULT_FILE, configuration_options
from loaded_mp.config.model import Config
from loaded_mp.machine import findings

_STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}


@click.command("diagnose")
@configuration_options
@click.pass_context
def command(context: click.Context, load: Callable[[], Config]) -> None:
    """Say whether this machine is able to run loaded-mp, and what to do where it is not.

    Without a configuration the default settings are meant. Nothing is changed: queues and rules are tried in
    a network namespace of their own. The exit status is 1 if anything failed, 0 otherwise.
    """
    config = load() if _given(context) else None
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    for finding in findings(config):
        failed = failed or finding.level == "fail"
        console.print(
            Text.assemble((f"{finding.level:<9}", _STYLES[finding.level]), f"{finding.what:<19}"), end=""
        )
        console.print(Text(finding.text))
        if finding.todo:
            console.print(Text(f"{'':<28}{finding.todo}"))
    context.exit(1 if failed else 0)


def _given(context: click.Context) -> bool:
    """Whether anything says what the configuration is: an option or the file that is read by default."""
    options = (context.get_parameter_source(each.name or "") for each in context.command.params)
    return any(source is not ParameterSource.DEFAULT for source in options) or DEFAULT_FILE.exists()
