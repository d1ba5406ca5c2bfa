"""The flow table against a dict with expiry, its hash against Python's own, and with four writers."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

import numba
import numpy as np
import pytest
from building import unsigned
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.flows import flow
from loaded_mp.flows import table as flow_table
from loaded_mp.flows.atomics import Words, add
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.siphash import siphash
from loaded_mp.flows.table import (
    MAX_VALUE,
    WAYS,
    FlowTable,
    buckets_for,
    count,
    expire,
    flow_at,
    forget,
    insert,
    new_table,
    replace,
    touch,
    value_of,
)
from loaded_mp.packet.address import Address128

# What compiled code hands to Python becomes a plain int; what it takes must be unsigned again.


def flow_of(table: FlowTable, scope: int, source: int) -> Flow:
    address = Address128(np.uint64(0), np.uint64(source))
    return unsigned(flow.flow_of(table.secret, np.uint64(scope), address))


def find(table: FlowTable, flow: Flow) -> tuple[int, np.uint64]:
    entry, word = flow_table.find(table, flow)
    return entry, np.uint64(word)


SECRET = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
IDLE_S = 60
compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="interpreted, nothing is atomic")


def test_siphash_is_the_one_of_python() -> None:
    """CPython hashes bytes with SipHash-1-3, and PYTHONHASHSEED=0 makes its key zero."""
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip("this Python hashes otherwise")
    words = [0, 1, 0xDEADBEEF << 20]
    message = b"".join(w.to_bytes(8, "little") for w in words)
    output = subprocess.run(
        [sys.executable, "-c", f"print(hash({message!r}) % 2**64)"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    zero = np.zeros(2, np.uint64)
    assert int(siphash(zero, *(np.uint64(w) for w in words))) == int(output)


@pytest.mark.parametrize(("flows", "buckets"), [(1, 1), (2, 1), (3, 2), (1000, 512), (1 << 20, 1 << 19)])
def test_size(flows: int, buckets: int) -> None:
    assert buckets_for(flows) == buckets


@pytest.mark.parametrize("flows", [0, (1 << 25) + 1])
def test_size_has_bounds(flows: int) -> None:
    with pytest.raises(ValueError, match="a flow table holds"):
        buckets_for(flows)


steps = st.lists(
    st.tuples(
        st.sampled_from(["packet", "move", "wait", "expire", "forget"]),
        st.integers(0, 30),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps)
def test_behaves_like_a_dict_with_expiry(steps: list[tuple[str, int, int]]) -> None:
    table = new_table(1024, SECRET)
    model: dict[int, tuple[int, int]] = {}  # source -> (value, deadline)
    now_s = 1000
    for step, source, value in steps:
        flow = flow_of(table, 7, source)
        entry, word = find(table, flow)
        assert (entry >= 0) == (source in model)
        if step == "packet" and entry >= 0:
            assert value_of(word) == model[source][0]
            assert touch(table, entry, word, now_s, now_s + IDLE_S)
            model[source] = (model[source][0], now_s + IDLE_S)
        elif step == "packet":
            result = insert(table, flow, value, now_s + IDLE_S)
            assert result == (value, -1)
            model[source] = (value, now_s + IDLE_S)
        elif step == "move" and entry >= 0:
            assert replace(table, entry, word, value)
            model[source] = (value, model[source][1])
        elif step == "wait":
            now_s += source
        elif step == "expire":
            gone = [s for s, (_, deadline) in model.items() if deadline < now_s]
            for s in gone:
                del model[s]
            counts = np.zeros(MAX_VALUE + 1, np.int64)
            assert expire(table, 0, table.words.size, now_s, counts) == len(gone)
            assert counts.sum() == len(gone)
            counts[:] = 0
            assert count(table, 0, table.words.size, counts) == len(model)
            held = [v for v, _ in model.values()]
            assert counts[:6].tolist() == [held.count(v) for v in range(6)]
        elif step == "forget":
            gone = [s for s, (v, _) in model.items() if v == value]
            for s in gone:
                del model[s]
            forgotten = np.zeros(MAX_VALUE + 1, np.bool_)
            forgotten[value] = True
            assert forget(table, 0, table.words.size, forgotten) == len(gone)
        for s in model:
            entry, word = find(table, flow_of(table, 7, s))
            true, held_flow = flow_at(table, entry, word)
            assert true
            assert unsigned(held_flow) == flow_of(table, 7, s)


def fill(table: FlowTable, sources: range, deadline_s: int) -> int:
    """Enter the sources, each with its own number as value; how many others had to give way."""
    evictions = 0
    for source in sources:
        flow = flow_of(table, 0, source)
        evictions += insert(table, flow, source, deadline_s + source)[1] >= 0
    return evictions


def test_a_full_bucket_gives_up_its_oldest() -> None:
    table = new_table(1, SECRET)
    assert fill(table, range(WAYS), 100) == 0
    assert fill(table, range(WAYS, WAYS + 1), 100) == 1
    present = {value_of(w) for w in table.words}
    assert len(present) == WAYS
    assert WAYS in present
    assert 0 not in present


def test_a_flood_of_short_lived_flows_moves_none_that_live_long() -> None:
    table = new_table(4096, SECRET)
    living, now_s = 2048, 1000
    for source in range(living):
        insert(table, flow_of(table, 0, source), 1, now_s + 7_500)
    for source in range(100_000):
        insert(table, flow_of(table, 1, source), 2, now_s + 10)
    there = [find(table, flow_of(table, 0, source))[0] >= 0 for source in range(living)]
    assert all(there)


def test_few_flows_are_evicted_at_the_configured_size() -> None:
    assert fill(new_table(4096, SECRET), range(4096), 100) <= 8


def test_a_used_entry_cannot_be_removed_by_who_looked_before() -> None:
    """The sweep read the entry as expired; a packet used it; the sweep's removal must fail."""
    table = new_table(1, SECRET)
    flow = flow_of(table, 0, 1)
    insert(table, flow, 3, 100)
    entry, seen_by_sweep = find(table, flow)
    assert touch(table, entry, seen_by_sweep, 101, 161)
    assert not replace(table, entry, seen_by_sweep, 0)
    assert not touch(table, entry, seen_by_sweep, 160, 220)


def shared_table(memory: SharedMemory, entries: int) -> FlowTable:
    words = np.ndarray(entries, np.uint64, memory.buf)
    deadlines_s = np.ndarray(entries, np.uint32, memory.buf, entries * 8)
    keys = np.ndarray((entries, 3), np.uint64, memory.buf, entries * 12)
    return FlowTable(words, deadlines_s, keys, SECRET)


def write(name: str, entries: int, writer: int, sources: int, answers: str) -> None:
    """Look every source up in a random order; enter it with the writer's own number where it is missing."""
    memory, result = SharedMemory(name), SharedMemory(answers)
    table = shared_table(memory, entries)
    found = np.ndarray((4, sources), np.int64, result.buf)
    for source in np.random.default_rng(writer // 2).permutation(sources):
        flow = flow_of(table, 0, source)
        entry, word = find(table, flow)
        if entry >= 0:
            found[writer, source] = value_of(word)
        else:
            found[writer, source] = insert(table, flow, writer, 100)[0]
    del table, found
    memory.close()
    result.close()


def add_often(name: str, times: int) -> None:
    memory = SharedMemory(name)
    counter: Words | None = np.ndarray(1, np.uint64, memory.buf)
    for _ in range(times):
        assert counter is not None
        add(counter, 0, np.uint64(1))
    counter = None
    memory.close()


def run_four(target: object, *arguments: tuple[object, ...]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=a) for a in arguments]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@compiled_only
def test_add_loses_nothing() -> None:
    memory = SharedMemory(create=True, size=8)
    try:
        run_four(add_often, *[(memory.name, 100_000)] * 4)
        assert memory.buf
        assert int.from_bytes(bytes(memory.buf[:8]), sys.byteorder) == 400_000
    finally:
        memory.close()
        memory.unlink()


@compiled_only
def test_four_writers_agree() -> None:
    """A crowded table: about five flows a bucket, every insertion moves another entry."""
    sources, entries = 40_000, 65_536
    memory = SharedMemory(create=True, size=entries * 36)
    answers = SharedMemory(create=True, size=4 * sources * 8)
    try:
        run_four(write, *[(memory.name, entries, w, sources, answers.name) for w in range(4)])
        found = np.ndarray((4, sources), np.int64, answers.buf).copy()
        table = shared_table(memory, entries)
        buckets = np.array([int(flow_of(table, 0, s).hash) % (entries // WAYS) for s in range(sources)])
        del table
        # Where more flows than fit share a bucket, one that gave way may come back with another value.
        fits = np.bincount(buckets, minlength=entries // WAYS)[buckets] <= WAYS
        assert fits.sum() > sources * 0.8
        assert (found == found[0]).all(axis=0)[fits].all()
        assert len(set(found[0])) > 1, "the writers never met"
    finally:
        for segment in (memory, answers):
            segment.close()
            segment.unlink()
