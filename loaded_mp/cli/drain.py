"""loaded-mp drain: let a backend run empty."""

import sys
import time

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.steering import backend_options, say, steer
from loaded_mp.status import ServiceStatus, Status, Wanted

_POLL_S = 1.0


@click.command("drain")
@backend_options
@click.option("--wait", "wait_s", type=click.FloatRange(0, 604_800), metavar="SECONDS",
              help="Wait until it has no flows, so long at the most.")  # fmt: skip
def command(backend: str, wait_s: float | None, service: str | None) -> None:
    """Give BACKEND (a name or an address) no new clients; those that it has stay.

    It has a client until that was idle for tcp_idle_s, udp_idle_s or other_idle_s. With --wait the status is
    1 if some are left in the end; they stay nevertheless. It holds until `ready`, also over a reload and a
    restart.
    """
    now = steer("drain", backend=backend, service=service)
    say(now)
    if wait_s is None:
        return
    deadline_s, said = time.monotonic() + wait_s, _left(now)
    while flows := _left(now):
        if flows != said:
            click.echo(f"{flows:,} flows are left")
            said = flows
        rest_s = deadline_s - time.monotonic()
        if rest_s <= 0:
            click.echo(f"after {wait_s:g} s {flows:,} flows are left; they stay", err=True)
            sys.exit(1)
        time.sleep(min(_POLL_S, rest_s))
        now = _again(now)
        if not any(each.wanted is Wanted.DRAIN for service_now in now for each in service_now.backends):
            raise click.ClickException("it is drained no more: somebody else said so, or it was removed")
    click.echo("no flows are left")


def _left(services: list[ServiceStatus]) -> int:
    """How many flows the backends have."""
    return sum(each.flows for service in services for each in service.backends)


def _again(before: list[ServiceStatus]) -> list[ServiceStatus]:
    """What the same backends are now. Nobody is told to drain again: that may have been taken back."""
    services = answer_to("status", Status, service=before[0].name).services
    addresses = {each.address for service in before for each in service.backends}
    return [
        service.model_copy(
            update={"backends": tuple(each for each in service.backends if each.address in addresses)}
        )
        for service in services
    ]
