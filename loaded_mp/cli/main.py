"""The command `loaded-mp`: without a subcommand it runs the daemon."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem, get_completion_class

from loaded_mp import __version__

#: Subcommand -> what `--help` says of it. Each is `command` in the module of its name.
_COMMANDS = {
    "add": "Add a backend while the daemon runs.",
    "check-config": "Check a configuration and say what it means.",
    "checks": "Show what checks found the last time.",
    "cleanup": "Take back what a killed daemon left on this host.",
    "completion": "Print the script that completes commands in your shell.",
    "convert": "Turn a classic file into TOML.",
    "demo": "Show it on real traffic in a network of namespaces.",
    "diagnose": "Is this machine able to run loaded-mp?",
    "drain": "Give a backend no new clients; those that it has stay.",
    "events": "Show the last changes and their causes.",
    "explain": "Say what would happen to a packet now, and why.",
    "flows": "Show which client has which backend.",
    "import": "Bring a set-up of LVS, keepalived or HAProxy over.",
    "maintenance": "Send nothing to a backend.",
    "move": "Let a client go to another backend.",
    "plan": "Print every change to this host without doing it.",
    "ready": "Let a backend serve again.",
    "reload": "Let the running daemon read its configuration again.",
    "remove": "Take a backend out while the daemon runs.",
    "restart": "Let the running daemon become the program that is installed now.",
    "save": "Write what was changed at run time into the file.",
    "status": "Show what the running daemon does.",
    "stop": "End the running daemon and wait until it is gone.",
    "top": "Show services and backends, live.",
    "warm-up": "Compile now, so that the first start is a fast one.",
    "weight": "Give a backend another share of new clients.",
    "whatif": "Say which flows would move if you said this or that.",
}


@contextmanager
def _importing() -> Iterator[None]:
    """Imports make much and throw nothing away: looking for that takes an eighth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Commands(click.Group):
    """Loads a subcommand's module only when it is used, and then not what a start needs: that takes long."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = bool(args) and args[0] in _COMMANDS
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        if ctx.obj:
            return params
        from loaded_mp.cli.options import source_parameters  # noqa: PLC0415

        return [*source_parameters(), *params]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "completion":
            return completion
        if cmd_name not in _COMMANDS:
            return None
        with _importing():
            module = importlib.import_module(f"loaded_mp.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=text) for name, text in _COMMANDS.items() if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("-D", "debug", is_flag=True, help="Log everything; stays in the foreground, as always.")
@click.option("--network-setup/--no-network-setup", default=True, help="Set this host up, or leave it alone.")
@click.version_option(__version__, prog_name="loaded-mp")
@click.pass_context
def main(context: click.Context, /, debug: bool, network_setup: bool, **values: Any) -> None:
    """A load balancer for Linux that runs in userspace and keeps up with the kernel.

    Without a command it runs in the foreground until SIGTERM or Ctrl-C; SIGHUP reloads the configuration.

    \b
    Examples:
      loaded-mp -c /etc/loaded-mp/loaded-mp.toml
      loaded-mp --vip 192.0.2.10 --backend 10.0.0.1 --backend 10.0.0.2,weight=3 --workers 4
      loaded-mp -6 -f                     the classic ./loaded.config6, with failover
      loaded-mp plan -c FILE              what a start would change on this host
      loaded-mp diagnose                  is this machine able?

    \b
    Exit status:
      0  all went well
      1  it failed; the last line says why
      2  wrong usage, or mistakes in the configuration

    \b
    Commands and options complete in your shell after
      eval "$(loaded-mp completion bash)"          or zsh, or fish
    """
    if context.invoked_subcommand:
        if any(context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in context.params):
            raise click.UsageError(
                f"options belong behind the command: loaded-mp {context.invoked_subcommand} ..."
            )
        return
    with _importing():
        from loaded_mp.cli.options import load_or_exit, source_of  # noqa: PLC0415

        source = source_of(values)
        config = load_or_exit(source)
        from loaded_mp.cli.run import run  # noqa: PLC0415 (numba takes its time, and a mistake need not wait)

    sys.exit(run(source, config, network_setup=network_setup, debug=debug))


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in SHELL.

    \b
    Try it:    eval "$(loaded-mp completion bash)"
    Keep it:   loaded-mp completion bash > /etc/bash_completion.d/loaded-mp
    """
    complete = get_completion_class(shell)
    assert complete
    click.echo(complete(main, {}, "loaded-mp", "_LOADED_MP_COMPLETE").source())
