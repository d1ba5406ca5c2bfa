"""Having every compiled function as machine code before the first packet: from the cache, or anew."""

import socket
import time
from collections.abc import Callable, Iterator

import numpy as np

from loaded_mp.datapath.loop import give_back, new_batch, serve
from loaded_mp.flows.atomics import add
from loaded_mp.flows.table import MAX_VALUE, expire, forget
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.schedulers import SCHEDULERS


def machine_code_steps(memory: SharedMemory) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is to be compiled, in order: a name for people and the call that does it.

    `memory` is left as it is. A step takes milliseconds if the cache on disk has it, else seconds.
    """
    batch = new_batch()
    counts = np.zeros(MAX_VALUE + 1, np.int64)

    def loop() -> None:
        with socket.socket() as no_queue:
            serve(no_queue.fileno(), 0, batch, memory, 0, False)
            give_back(no_queue.fileno(), 0, batch, 0)

    yield "schedulers", lambda: [fill(np.ones(1, np.int64)) for fill in SCHEDULERS.values()]
    yield "flow table", lambda: (expire(memory.table, 0, 0, 0, counts), forget(memory.table, 0, 0, 0))
    yield "atomics", lambda: add(memory.cursors, 0, np.uint64(0))
    yield "loop", loop


def load_machine_code(memory: SharedMemory, say: Callable[[str, float], None]) -> None:
    """Do all steps; `say` is told the name of each step and the seconds that it took."""
    for name, step in machine_code_steps(memory):
        started = time.monotonic()
        step()
        say(name, time.monotonic() - started)
