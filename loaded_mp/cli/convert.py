"""loaded-mp convert: turn a classic file into TOML."""

from pathlib import Path

import click

from loaded_mp.cli.options import load_or_exit
from loaded_mp.config.classic import Family
from loaded_mp.config.source import Source
from loaded_mp.config.toml import to_toml


@click.command("convert")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-4", "ipv4", is_flag=True, help="Read the IPv4 settings.")
@click.option("-6", "ipv6", is_flag=True, help="Read the IPv6 settings; the default if FILE ends in 6.")
@click.option("-f", "failover", is_flag=True, help="Switch the checks on.")
def command(file: Path, ipv4: bool, ipv6: bool, failover: bool) -> None:
    """Print what the classic FILE says as TOML."""
    families: list[Family] = []
    if ipv4 or not (ipv6 or file.name.endswith("6")):
        families.append(4)
    if ipv6 or (file.name.endswith("6") and not ipv4):
        families.append(6)
    config = load_or_exit(Source(path=file, families=tuple(families), failover=failover))
    click.echo(to_toml(config), nl=False)
