"""loaded-mp check-config: check a configuration and say what it means."""

from collections.abc import Callable

import click

from loaded_mp.cli.options import configuration_options
from loaded_mp.config.model import OPEN, Config
from loaded_mp.fields import vip_name


@click.command("check-config")
@configuration_options
def command(load: Callable[[], Config]) -> None:
    """Check a configuration and say what it means; all mistakes at once, exit status 2."""
    config = load()
    for service in config.services:
        vips = ", ".join(map(vip_name, service.vips))
        answers = ", ".join(map(str, service.listen)) or "everything"
        way = service.forwarding + (f" ({service.tunnel.kind})" if service.forwarding == "tunnel" else "")
        click.echo(f"service {service.name}: {vips}; {answers}; {service.scheduler}")
        click.echo(f"  forwarding {way}, affinity {service.affinity}")
        if not service.listen:
            click.echo(f"  note: {OPEN}")
        for backend in service.backends:
            name = f" ({backend.name})" if backend.name else ""
            backup = ", a backup" if backend.backup else ""
            click.echo(f"  backend {backend.address}{name} weight {backend.weight}{backup}")
        for check in service.checks:
            click.echo(f"  check: {check} every {check.interval_s:g} s, rise {check.rise}, fall {check.fall}")
        if service.discovery:
            click.echo(f"  discovery: {service.discovery}")
        if len(service.checks) > 1:
            click.echo(f"  {service.checks_needed} of the checks must pass")
        if not service.checks:
            click.echo("  check: none, every backend counts as up")
    click.echo(f"workers: {config.workers or 'one for each core'}; room for {config.flows:,} flows")
    click.echo("the configuration is good")
