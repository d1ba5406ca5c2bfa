"""A set-associative hash table that several processes read and write without locks.

One 64-bit word per entry decides everything: 40 bits of fingerprint, 8 bits of tag, 16 bits of value (the
backend). A bucket is eight words, one cache line. The rules:

1. A word changes only by compare-and-swap, and every change gives it another tag, so that a process which
   looked before the change cannot win after it.
2. A new entry always goes into the first word of its bucket. What was there is first copied into another
   word: one that holds a copy of it already, else an empty one, else the one that expires soonest. All
   insertions into a bucket therefore meet in one compare-and-swap, and two processes that insert the same
   flow agree: the loser looks again and finds the winner's entry.
3. Of two copies of an entry the first in the bucket counts. A process that dies between copying and
   inserting leaves a copy of the same value behind, nothing else.
4. An idle entry is removed only after its deadline. Whoever uses an entry shortly before or after its
   deadline changes the tag as well, so that the removal fails.

Deadlines and keys lie in arrays beside the words. A deadline is a hint: it may be set by a process that then
loses. A key is written after its word, and so may be that of a flow that was there before; whoever reads one
asks `flow_at`, which believes it only if its hash is the one in the word.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled, signed
from loaded_mp.flows.atomics import Words, cas, load
from loaded_mp.flows.flow import Flow, flow_of
from loaded_mp.packet.address import Address128

#: Words in a bucket: one cache line.
WAYS = 8
#: Values are 16 bits wide.
MAX_VALUE = 0xFFFF
#: The longest that a process may stand still between reading an entry and removing it, in seconds.
GUARD_S = 2
#: Flows per bucket for which a table is sized; at 2 of 8, fewer than 2 flows in 10,000 find it full.
_FLOWS_PER_BUCKET = 2

_VALUE_MASK = np.uint64(0xFFFF)
_TAG_MASK = np.uint64(0xFF0000)
_TAG_STEP = np.uint64(0x10000)
_FINGERPRINT_SHIFT = np.uint64(24)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


class Row(IntEnum):
    """Columns of what `read` writes."""

    ENTRY = 0
    WORD = 1
    VALUE = 2
    SCOPE = 3
    HIGH = 4  #: both halves of the address
    LOW = 5
    DEADLINE_S = 6


class FlowTable(NamedTuple):
    """Views of one block of shared memory; n = buckets * WAYS, buckets a power of two of at most 2^24."""

    words: Words  #: uint64[n], native byte order
    deadlines_s: npt.NDArray[np.uint32]  #: uint32[n], seconds on the caller's clock
    keys: Words  #: uint64[n, 3], scope and both halves of the address of each flow
    secret: Words  #: uint64[2], the key of the hash


def buckets_for(flows: int) -> int:
    """Buckets of a table with room for `flows` flows. Raises ValueError outside 1..2^25."""
    if not 1 <= flows <= _FLOWS_PER_BUCKET << 24:
        raise ValueError(f"a flow table holds 1 to {_FLOWS_PER_BUCKET << 24} flows, not {flows}")
    return 1 << ((flows - 1) // _FLOWS_PER_BUCKET).bit_length()


def new_table(flows: int, secret: Words) -> FlowTable:
    """An empty table in this process's own memory, with room for `flows` flows."""
    entries = buckets_for(flows) * WAYS
    return FlowTable(
        np.zeros(entries, np.uint64), np.zeros(entries, np.uint32), np.zeros((entries, 3), np.uint64), secret
    )


@compiled
def value_of(word: np.uint64) -> int:
    """The value in a word."""
    return signed(word & _VALUE_MASK)


@compiled
def find(table: FlowTable, flow: Flow) -> tuple[int, np.uint64]:
    """The entry of `flow` and its word, or (-1, 0)."""
    first, fingerprint = _first_entry(table, flow), _fingerprint(flow)
    for entry in range(first, first + WAYS):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT == fingerprint:
            return entry, word
    return -1, _ZERO


@compiled
def touch(table: FlowTable, entry: int, word: np.uint64, now_s: int, deadline_s: int) -> bool:
    """Let a found entry live until `deadline_s` at least.

    False if it was removed or changed meanwhile: then look again.
    """
    old_s = signed(table.deadlines_s[entry])
    if deadline_s > old_s:
        table.deadlines_s[entry] = np.uint32(deadline_s)
    if old_s > now_s + GUARD_S:
        return True
    return cas(table.words, entry, word, (word & ~_TAG_MASK) | _next_tag(word))


@compiled
def shorten(table: FlowTable, entry: int, deadline_s: int) -> None:
    """Let an entry that has just been found live until `deadline_s`; who touches it makes it longer again."""
    table.deadlines_s[entry] = np.uint32(deadline_s)


@compiled
def replace(table: FlowTable, entry: int, word: np.uint64, value: int) -> bool:
    """Give a found entry another value. False if somebody was faster: then look again."""
    changed = (word & ~_TAG_MASK & ~_VALUE_MASK) | _next_tag(word) | np.uint64(value)
    return cas(table.words, entry, word, changed)


@compiled
def remove(table: FlowTable, entry: int, word: np.uint64) -> bool:
    """Let a found entry be no more. False if somebody was faster: then look again."""
    return cas(table.words, entry, word, _next_tag(word))


@compiled
def insert(table: FlowTable, flow: Flow, value: int, deadline_s: int) -> tuple[int, int]:
    """Enter `flow` with `value`, unless another process was faster. Who expires soonest gives way.

    Returns the value that holds now, and that of another flow which had to give way, or -1.
    """
    first, fingerprint = _first_entry(table, flow), _fingerprint(flow)
    evicted = -1
    while True:  # a failed compare-and-swap means that another process got on: somebody always does
        head = load(table.words, first)
        entry, word = find(table, flow)
        if entry >= 0:
            return value_of(word), evicted
        if head >> _FINGERPRINT_SHIFT != _ZERO:
            place = _place_for_head(table, first, head)
            there = load(table.words, place)
            table.deadlines_s[place] = table.deadlines_s[first]
            for i in range(3):
                table.keys[place, i] = table.keys[first, i]
            moved = (head & ~_TAG_MASK) | _next_tag(there)
            if not cas(table.words, place, there, moved):
                continue
            if there >> _FINGERPRINT_SHIFT not in (_ZERO, head >> _FINGERPRINT_SHIFT):
                evicted = value_of(there)
        if deadline_s > signed(table.deadlines_s[first]):
            table.deadlines_s[first] = np.uint32(deadline_s)
        new = fingerprint << _FINGERPRINT_SHIFT | _next_tag(head) | np.uint64(value)
        if cas(table.words, first, head, new):
            # Not before: it might be the one that was there whose time were cut short.
            table.deadlines_s[first] = np.uint32(deadline_s)
            table.keys[first, 0] = flow.scope
            table.keys[first, 1] = flow.address.high
            table.keys[first, 2] = flow.address.low
            return value, evicted


@compiled
def _place_for_head(table: FlowTable, first: int, head: np.uint64) -> int:
    """Where the bucket's first entry may be copied to."""
    place = -1
    soonest = np.uint32(0xFFFFFFFF)
    empty = False
    for entry in range(first + 1, first + WAYS):
        fingerprint = load(table.words, entry) >> _FINGERPRINT_SHIFT
        if fingerprint == head >> _FINGERPRINT_SHIFT:
            return entry
        if empty:
            continue
        if fingerprint == _ZERO:
            place, empty = entry, True
        elif table.deadlines_s[entry] <= soonest:
            # Of two copies with the same deadline the later one goes: the first counts.
            place, soonest = entry, table.deadlines_s[entry]
    return place


@compiled
def flow_at(table: FlowTable, entry: int, word: np.uint64) -> tuple[bool, Flow]:
    """The flow of an entry with this word, and whether that is true: its key may be written only later."""
    address = Address128(table.keys[entry, 1], table.keys[entry, 2])
    flow = flow_of(table.secret, table.keys[entry, 0], address)
    here = _fingerprint(flow) == word >> _FINGERPRINT_SHIFT and (
        _first_entry(table, flow) == entry - entry % WAYS
    )
    return here, flow


@compiled
def expire(table: FlowTable, start: int, stop: int, now_s: int, removed: npt.NDArray[np.int64]) -> int:
    """Remove the entries in start:stop whose deadline has passed. Returns how many.

    They are added to `removed` (int64[MAX_VALUE + 1]) by their value.
    """
    total = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT == _ZERO or signed(table.deadlines_s[entry]) >= now_s:
            continue
        if remove(table, entry, word):
            removed[value_of(word)] += 1
            total += 1
    return total


@compiled
def count(table: FlowTable, start: int, stop: int, counts: npt.NDArray[np.int64]) -> int:
    """Add the entries in start:stop to `counts` (int64[MAX_VALUE + 1]) by their value. Returns how many."""
    used = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT != _ZERO:
            counts[value_of(word)] += 1
            used += 1
    return used


@compiled
def read(table: FlowTable, start: int, stop: int, wanted: npt.NDArray[np.bool_], rows: Words) -> int:
    """Write the flows in start:stop whose value `wanted` (bool[MAX_VALUE + 1]) names; how many.

    They go into `rows`, uint64[stop - start, len(Row)].
    """
    found = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT == _ZERO or not wanted[value_of(word)]:
            continue
        known, flow = flow_at(table, entry, word)
        if known and find(table, flow)[0] == entry:
            rows[found, Row.ENTRY] = entry
            rows[found, Row.WORD] = word
            rows[found, Row.VALUE] = word & _VALUE_MASK
            rows[found, Row.SCOPE] = flow.scope
            rows[found, Row.HIGH] = flow.address.high
            rows[found, Row.LOW] = flow.address.low
            rows[found, Row.DEADLINE_S] = table.deadlines_s[entry]
            found += 1
    return found


@compiled
def forget(table: FlowTable, start: int, stop: int, forgotten: npt.NDArray[np.bool_]) -> int:
    """Remove the entries in start:stop whose value `forgotten` (bool[MAX_VALUE + 1]) names; how many."""
    removed = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT != _ZERO and forgotten[value_of(word)]:
            removed += remove(table, entry, word)
    return removed


@compiled
def _fingerprint(flow: Flow) -> np.uint64:
    fingerprint = flow.hash >> _FINGERPRINT_SHIFT
    return fingerprint if fingerprint != _ZERO else _ONE


@compiled
def _first_entry(table: FlowTable, flow: Flow) -> int:
    buckets = table.words.size // WAYS
    return signed(flow.hash & np.uint64(buckets - 1)) * WAYS


@compiled
def _next_tag(word: np.uint64) -> np.uint64:
    return (word + _TAG_STEP) & _TAG_MASK
