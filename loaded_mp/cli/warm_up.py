"""loaded-mp warm-up: compile before the first start, for images and packages."""

import time

import click

from loaded_mp.fastpath.loader import object_file
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.supervisor.machine_code import load_machine_code


@click.command("warm-up")
def command() -> None:
    """Compile the packet path and keep the machine code on disk, so that the first start is a fast one."""

    def say(name: str, seconds: float) -> None:
        click.echo(f"{name:12} {seconds:6.2f} s")

    load_machine_code(new_shared_memory(1_024, 1), say)
    started = time.monotonic()
    object_file()
    say("fast path", time.monotonic() - started)
