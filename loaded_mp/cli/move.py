"""loaded-mp move: let a client go to another backend."""

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.cli.flows import show
from loaded_mp.status import FlowsStatus


@click.command("move")
@click.argument("source")
@click.argument("backend")
@click.option("-s", "--service", metavar="SERVICE", help="Only in one service.")
def command(source: str, backend: str, service: str | None) -> None:
    """Let the client SOURCE (an address) go to BACKEND (a name or an address) from its next packet on.

    This is so in every service that has BACKEND and knows SOURCE. Its TCP connections are with the backend
    that it had: that one gets no packet of them any more, and BACKEND resets them. Where the kernel's NAT
    writes the addresses (forwarding = "conntrack"), its connections stay, and new ones go to BACKEND.
    """
    show(answer_to("move", FlowsStatus, source=source, backend=backend, service=service))
