"""Passes over the flow table."""

import asyncio
import time
from itertools import pairwise

import numpy as np
from building import unsigned

from loaded_mp.flows.flow import flow_of
from loaded_mp.flows.table import MAX_VALUE, insert
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.packet.address import Address128
from loaded_mp.supervisor import sweep
from loaded_mp.supervisor.sweep import Count, Expire, Forget, Sweeper, drift


def enter(memory: SharedMemory, source: int, backend: int, deadline_s: int) -> None:
    """What a worker does for a new flow. A deadline is never earlier than that of who was in its place."""
    flow = flow_of(memory.table.secret, np.uint64(3), Address128(np.uint64(0), np.uint64(source)))
    insert(memory.table, unsigned(flow), backend, deadline_s)
    memory.active[0, backend] += 1
    memory.backends[0, backend, BackendCounter.NEW_FLOWS] += np.uint64(1)


def filled(late: int, early: int) -> SharedMemory:
    memory = new_shared_memory(4_096, 1)
    now_s = int(time.monotonic())
    for source in range(late + early):
        enter(memory, source, source % 3, now_s + (-1 if source < early else 1_000))
    return memory


def one_pass(memory: SharedMemory, *visitors: sweep.Visitor) -> None:
    async def run() -> None:
        sweeper = Sweeper(memory.table)
        await sweeper._pass(visitors, 0)

    asyncio.run(run())


def test_one_pass_serves_all_visitors() -> None:
    memory = filled(late=30, early=60)
    counting = Count(memory)
    one_pass(memory, Expire(memory), counting)
    assert counting.used == 30
    assert counting.counts[:4].tolist() == [10, 10, 10, 0]
    assert memory.active.sum(axis=0)[:3].tolist() == [10, 10, 10]
    assert memory.active[-1, :3].tolist() == [-20, -20, -20]


def test_the_pieces_are_the_whole_table(monkeypatch: object) -> None:
    memory = new_shared_memory(4_096, 1)
    seen: list[tuple[int, int]] = []

    class Watch:
        def begin(self) -> None:
            seen.clear()

        def visit(self, start: int, stop: int) -> None:
            seen.append((start, stop))

        def end(self) -> None:
            seen.append((-1, -1))

    asyncio.run(Sweeper(memory.table).once(Watch()))
    *pieces, over = seen
    assert over == (-1, -1)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == memory.table.words.size
    assert all(one[1] == other[0] for one, other in pairwise(pieces))


def test_forgetting_takes_out_several_values_at_once() -> None:
    memory = filled(late=30, early=0)
    counting = Count(memory)
    one_pass(memory, Forget(memory.table, [0, 2, MAX_VALUE]), counting)
    assert counting.counts[:3].tolist() == [0, 10, 0]


def test_counts_that_a_death_left_wrong_are_set_right() -> None:
    memory = filled(late=30, early=0)
    memory.active[0, 0] += 5
    memory.active[0, 1] -= 2
    one_pass(memory, Count(memory))
    assert memory.active.sum(axis=0)[:3].tolist() == [10, 10, 10]


def test_what_comes_and_goes_during_a_pass_is_no_drift() -> None:
    def off(before: int, after: int, new: int, counted: int) -> int:
        return int(drift(*(np.array([n]) for n in (before, after, new, counted)))[0])

    assert off(before=10, after=10, new=0, counted=10) == 0
    assert off(before=10, after=10, new=0, counted=8) == -2
    assert off(before=10, after=14, new=4, counted=11) == 0
    assert off(before=10, after=5, new=0, counted=9) == 0
    assert off(before=10, after=10, new=2, counted=13) == 0
    assert off(before=10, after=10, new=2, counted=50) == 40
