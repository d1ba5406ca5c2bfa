"""What a start does once."""

import logging
import os

from loaded_mp.bpf import arena_of
from loaded_mp.compiled import has_machine_code
from loaded_mp.config.model import Config
from loaded_mp.datapath.slices import ask_for_short_slices
from loaded_mp.log import event
from loaded_mp.memory.arena import refusal
from loaded_mp.memory.shared import SharedMemory, fresh_memory
from loaded_mp.network import setup
from loaded_mp.plan import no_fast_path
from loaded_mp.services import worker_count
from loaded_mp.supervisor.aside import aside
from loaded_mp.supervisor.handover import Inherited, let_go
from loaded_mp.supervisor.machine_code import load_machine_code, watch_for_late_compilation
from loaded_mp.supervisor.orphans import end_orphans

log = logging.getLogger(__name__)

#: Machine code that took longer did not come from the cache on disk.
_FROM_CACHE_S = 0.5


async def clear_up(handed: Inherited | None) -> None:
    """Take away what another daemon has left. Raises NetworkError."""
    if handed:
        let_go(handed)
    if orphans := end_orphans():
        log.warning(event("orphans-ended", workers=orphans))
    if setup.left_over():
        log.warning(event("leftovers-removed"))
        await aside(setup.take_down)


def memory_for(config: Config) -> tuple[SharedMemory, int, str]:
    """Fresh memory, its descriptor, and why the fast path cannot use it; empty: it can. Raises OSError.

    One that has nothing to do may have after a reload or a restart.
    """
    workers, why_not = worker_count(config), no_fast_path(config)
    try:
        return *fresh_memory(config.flows, workers, in_kernel=True), why_not
    except OSError as error:
        return *fresh_memory(config.flows, workers), why_not or refusal(error)


def why_not_in(memory: int, config: Config) -> str:
    """Why the fast path cannot use memory that another daemon has left, by its descriptor."""
    if why_not := no_fast_path(config):
        return why_not
    return "" if arena_of(memory) else "the kernel gave programs no memory at the start: stop and start anew"


def prepare_code(memory: SharedMemory) -> None:
    """Have all machine code at hand; what is compiled later is logged."""
    if not has_machine_code():
        log.info(event("compiling", cause="first start of this version", takes="one to three minutes"))
    load_machine_code(memory, _say_step)
    watch_for_late_compilation()


def _say_step(name: str, seconds: float) -> None:
    compiled = seconds > _FROM_CACHE_S
    log.log(logging.INFO if compiled else logging.DEBUG, event("machine-code", part=name, s=f"{seconds:.2f}"))


def shorten_slices() -> None:
    """Have workers run often rather than long, where the kernel allows it."""
    try:
        ask_for_short_slices()
    except OSError as error:
        log.warning(event("slices-refused", cause=str(error), effect="packets may wait for a core"))


def cores_of(config: Config) -> list[int | None]:
    """The core of each worker, in turn from first_core to last_core; None where there is no such core."""
    workers = worker_count(config)
    if config.first_core is None:
        return [None] * workers
    last = config.last_core if config.last_core is not None else config.first_core + workers - 1
    wanted = [config.first_core + number % (last - config.first_core + 1) for number in range(workers)]
    available = os.sched_getaffinity(0)
    missing = sorted(set(wanted) - available)
    if missing:
        log.warning(event("cores-missing", cores=",".join(map(str, missing)), effect="not pinned there"))
    return [core if core in available else None for core in wanted]
