"""Machine code: nothing stale is run, and nothing is compiled while packets wait."""

import ast
import asyncio
import socket
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event

import loaded_mp
from loaded_mp.compiled import PACKAGES, compiled
from loaded_mp.datapath.loop import give_back, new_batch, serve
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import Candidates
from loaded_mp.supervisor.machine_code import load_machine_code
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.sweep import Count, Expire, Forget, Sweeper

ROOT = Path(loaded_mp.__file__).parent


@pytest.mark.parametrize("module", ["loaded_mp.cli.run", "loaded_mp.worker", "loaded_mp.packets.header"])
def test_a_function_whose_source_names_no_cache_is_refused(module: str) -> None:
    def function() -> int:
        return 1

    function.__module__ = module
    with pytest.raises(ImportError, match="PACKAGES"):
        compiled(function)


def test_compiled_functions_refer_to_nothing_whose_change_would_not_be_noticed() -> None:
    known = {*PACKAGES, "compiled", "log", "bpf"}
    for package in PACKAGES:
        for file in (ROOT / package).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                for name in names:
                    if name.startswith("loaded_mp"):
                        assert name.split(".")[1] in known, f"{file} imports {name}"


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="interpreted, nothing is compiled")
def test_after_the_start_nothing_is_compiled() -> None:
    """Every way from Python into compiled code that a running daemon takes."""
    memory = new_shared_memory(1_024, 2)
    steps = []
    load_machine_code(memory, lambda name, _: steps.append(name))
    assert len(steps) == len(set(steps)) > 3

    async def supervise() -> None:
        sweeper = Sweeper(memory.table)
        await sweeper._pass((Expire(memory), Count(memory)), 0)
        await sweeper.once(Forget(memory.table, [3]))
        await Publisher(memory, list).publish(lambda snapshot: None)

    with event.install_recorder("numba:compile") as late:
        with socket.socket() as no_queue:
            batch = new_batch(no_queue.fileno(), 7)
            serve(batch, memory, 1, True)
            give_back(batch, 5)
        asyncio.run(supervise())
        for scheduler in SCHEDULERS.values():
            scheduler.slots(Candidates(np.array([3, 0, 65_535]), np.arange(3, dtype=np.uint64), 7))
    assert [called(each) for _, each in late.buffer if each.is_start] == []


def called(found: Any) -> str:
    return str(found.data["dispatcher"])
