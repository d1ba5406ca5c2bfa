"""Having every compiled function as machine code before the first packet: from the cache, or anew."""

import logging
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np

from loaded_mp.compiled import note_machine_code, tell_of_late_compilation
from loaded_mp.datapath.home import foresee
from loaded_mp.datapath.locality import copy_homes
from loaded_mp.datapath.loop import give_back, new_batch, serve
from loaded_mp.flows.atomics import add, load
from loaded_mp.flows.table import MAX_VALUE, Row, count, expire, forget, read, replace
from loaded_mp.log import event
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import Candidates
from loaded_mp.supervisor.explain import NOBODY, question
from loaded_mp.supervisor.forecast import new_flows

log = logging.getLogger(__name__)


def load_machine_code(memory: SharedMemory, say: Callable[[str, float], None]) -> None:
    """Do all steps; `say` is told the name of each step and the seconds that it took."""
    for name, step in _steps(memory):
        started = time.monotonic()
        step()
        say(name, time.monotonic() - started)
    note_machine_code()


def watch_for_late_compilation() -> None:
    """Log what is compiled from now on: a call that `load_machine_code` has forgotten."""
    tell_of_late_compilation(lambda name: log.error(event("compiled-late", function=name)))


def _steps(memory: SharedMemory) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is to be compiled, in order: a name for people and the calls that do it.

    These are all calls from Python to compiled functions. `memory` is left as it is. A step takes
    milliseconds if the cache on disk has it, else seconds.
    """
    counts = np.zeros(MAX_VALUE + 1, np.int64)

    def sweep() -> None:
        expire(memory.table, 0, 0, 0, counts)
        count(memory.table, 0, 0, counts)
        forget(memory.table, 0, 0, counts.astype(np.bool_))
        read(memory.table, 0, 0, counts.astype(np.bool_), np.zeros((1, len(Row)), np.uint64))
        replace(memory.table, 0, ~np.uint64(0), 0)  # no word is that

    def loop() -> None:
        with socket.socket() as no_queue:
            batch = new_batch(no_queue.fileno(), 0)
            serve(batch, memory, 0, False)
            give_back(batch, 0)

    candidates = Candidates(np.ones(1, np.int64), np.ones(1, np.uint64), 3)
    yield "schedulers", lambda: [each.slots(candidates) for each in SCHEDULERS.values()]
    yield "flow table", sweep
    yield "atomics", lambda: (add(memory.generation, 0, np.uint64(0)), load(memory.generation, 0))
    yield "explain", lambda: foresee(*question(memory, NOBODY, NOBODY, 0, 0))

    def what_if() -> None:
        work, nobody = question(memory, NOBODY, NOBODY, 0, 0)[0], np.zeros((0, 2), np.uint64)
        new_flows(work, 0, nobody, nobody)
        copy_homes(work, 0, nobody, memory.table)

    yield "what if", what_if
    yield "loop", loop
