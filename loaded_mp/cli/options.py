"""Options that say where the configuration comes from, shared by all commands that need one."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loaded_mp.cli.outcome import EXIT_BAD_CONFIGURATION
from loaded_mp.config.classic import Family
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config
from loaded_mp.config.source import DEFAULT_FILES, Source
from loaded_mp.forwarding import FORWARDINGS

DEFAULT_FILE = DEFAULT_FILES[4]

_WRITERS = "; ".join(f"{name}: {forwarding.who}" for name, forwarding in FORWARDINGS.items())

_OPTIONS = (
    click.option("-c", "--config", "path", metavar="FILE", type=click.Path(path_type=Path),
                 help="TOML if it ends in .toml, else classic. Default: loaded.config; -6: loaded.config6."),
    click.option("-4", "ipv4", is_flag=True, help="Read the IPv4 settings of a classic file (the default)."),
    click.option("-6", "ipv6", is_flag=True, help="Read the IPv6 settings of a classic file."),
    click.option("-f", "failover", is_flag=True, help="Switch on the checks of a classic file (failover)."),
    click.option("--vip", "vips", metavar="ADDRESS", multiple=True, help="Virtual IP; may be repeated."),
    click.option("--backend", "backends", metavar="ADDRESS[,weight=N][,name=X]", multiple=True,
                 help="Backend; may be repeated."),
    click.option("--port", "ports", metavar="PROTOCOL[/PORT]", multiple=True,
                 help="Balance only tcp/80, udp/53, icmp...; may be repeated. Default: everything."),
    click.option("--check-port", metavar="PORT",
                 help="Check backends by connecting to this TCP port; wins over the file."),
    click.option("--forwarding", type=click.Choice(list(FORWARDINGS)),
                 help=f"Who writes the addresses: {_WRITERS}."),
    click.option("--workers", metavar="N", help="Worker processes. Default: one for each core."),
    click.option("--first-queue", metavar="N", help="Number of the first netfilter queue."),
    click.option("-Q", "queue_length", metavar="LEN", help="Packets that may wait in a queue."),
    click.option("-U", "--user", metavar="USER",
                 help="User that workers run as. Default: loaded-mp if there is one, else nobody."),
    click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
    click.option("--metrics", "metrics_listen", metavar="HOST:PORT",
                 help="Where /metrics is served; '' for nowhere. Default: 127.0.0.1:9128."),
)  # fmt: skip

#: Parameter -> flag, for those that win over the file.
_OVERRIDES = {
    "workers": "--workers",
    "first_queue": "--first-queue",
    "queue_length": "-Q",
    "user": "--user",
    "log_level": "--log-level",
    "metrics_listen": "--metrics",
}


def source_of(values: dict[str, Any]) -> Source:
    """Take the options above out of a command's parameters."""
    overrides = tuple(
        (name, value, flag) for name, flag in _OVERRIDES.items() if (value := values.pop(name)) is not None
    )
    asked: list[Family] = []
    if values.pop("ipv4"):
        asked.append(4)
    if values.pop("ipv6"):
        asked.append(6)
    return Source(
        path=values.pop("path"),
        families=tuple(asked) or (4,),
        vips=values.pop("vips"),
        backends=values.pop("backends"),
        ports=values.pop("ports"),
        check_port=values.pop("check_port"),
        failover=values.pop("failover"),
        forwarding=values.pop("forwarding"),
        overrides=overrides,
    )


def load_or_exit(source: Source) -> Config:
    """The configuration; if it has mistakes, they are printed and the process ends with status 2."""
    try:
        return source.load()
    except ConfigError as error:
        for mistake in error.mistakes:
            click.echo(str(mistake), err=True)
        count = len(error.mistakes)
        click.echo(f"{count} mistake{'s' if count > 1 else ''} in the configuration", err=True)
        sys.exit(EXIT_BAD_CONFIGURATION)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options and pass it what they say as `source`."""

    @functools.wraps(function)
    def with_source(*arguments: Any, **values: Any) -> Any:
        return function(*arguments, source=source_of(values), **values)

    wrapped: Callable[..., Any] = with_source
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def source_parameters() -> list[click.Parameter]:
    """The same options, for a command that loads them late."""
    return click.command()(source_options(lambda **_: None)).params


def configuration_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options and pass it `load`: the configuration, or an end with status 2."""

    @functools.wraps(function)
    def with_load(*arguments: Any, source: Source, **values: Any) -> Any:
        return function(*arguments, load=lambda: load_or_exit(source), **values)

    return source_options(with_load)
