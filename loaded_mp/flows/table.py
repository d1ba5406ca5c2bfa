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
4. An entry is removed only after its deadline. Whoever uses an entry shortly before or after its deadline
   changes the tag as well, so that the removal fails.

Deadlines and addresses lie in arrays beside the words. They are hints: a deadline may be set by a process
that then loses; an address is for people to read and may belong to a flow that was there before.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled
from loaded_mp.flows.atomics import Words, cas, load
from loaded_mp.flows.siphash import siphash

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


class FlowTable(NamedTuple):
    """Views of one block of shared memory; n = buckets * WAYS, buckets a power of two of at most 2^24."""

    words: Words  #: uint64[n], native byte order
    deadlines_s: npt.NDArray[np.uint32]  #: uint32[n], seconds on the caller's clock
    addresses: Words  #: uint64[n, 2], the source address as two big-endian halves read as numbers
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
        np.zeros(entries, np.uint64), np.zeros(entries, np.uint32), np.zeros((entries, 2), np.uint64), secret
    )


@compiled
def flow_hash(table: FlowTable, scope: int, high: np.uint64, low: np.uint64) -> np.uint64:
    """The hash by which every other function here knows a flow: of its scope (a service) and address."""
    return siphash(table.secret, np.uint64(scope), high, low)


@compiled
def value_of(word: np.uint64) -> int:
    """The value in a word."""
    return int(np.int64(word & _VALUE_MASK))


@compiled
def _fingerprint(flow: np.uint64) -> np.uint64:
    fingerprint = flow >> _FINGERPRINT_SHIFT
    return fingerprint if fingerprint != _ZERO else _ONE


@compiled
def _first_entry(table: FlowTable, flow: np.uint64) -> int:
    buckets = table.words.size // WAYS
    return int(np.int64(flow & np.uint64(buckets - 1))) * WAYS


@compiled
def _next_tag(word: np.uint64) -> np.uint64:
    return (word + _TAG_STEP) & _TAG_MASK


@compiled
def find(table: FlowTable, flow: np.uint64) -> tuple[int, np.uint64]:
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
    old_s = int(np.int64(table.deadlines_s[entry]))
    if deadline_s > old_s:
        table.deadlines_s[entry] = np.uint32(deadline_s)
    if old_s > now_s + GUARD_S:
        return True
    return cas(table.words, entry, word, (word & ~_TAG_MASK) | _next_tag(word))


@compiled
def replace(table: FlowTable, entry: int, word: np.uint64, value: int) -> bool:
    """Give a found entry another value. False if somebody was faster: then look again."""
    changed = (word & ~_TAG_MASK & ~_VALUE_MASK) | _next_tag(word) | np.uint64(value)
    return cas(table.words, entry, word, changed)


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
def insert(
    table: FlowTable, flow: np.uint64, value: int, deadline_s: int, high: np.uint64, low: np.uint64
) -> tuple[int, bool]:
    """Enter `flow` with `value`, unless another process was faster.

    Returns the value that holds now and whether another flow had to give way.
    """
    first, fingerprint = _first_entry(table, flow), _fingerprint(flow)
    evicted = False
    while True:  # a failed compare-and-swap means that another process got on: somebody always does
        head = load(table.words, first)
        entry, word = find(table, flow)
        if entry >= 0:
            return value_of(word), evicted
        if head >> _FINGERPRINT_SHIFT != _ZERO:
            place = _place_for_head(table, first, head)
            there = load(table.words, place)
            table.deadlines_s[place] = table.deadlines_s[first]
            table.addresses[place, 0] = table.addresses[first, 0]
            table.addresses[place, 1] = table.addresses[first, 1]
            moved = (head & ~_TAG_MASK) | _next_tag(there)
            if not cas(table.words, place, there, moved):
                continue
            old = there >> _FINGERPRINT_SHIFT
            evicted = evicted or (old not in (_ZERO, head >> _FINGERPRINT_SHIFT))
        if deadline_s > int(np.int64(table.deadlines_s[first])):
            table.deadlines_s[first] = np.uint32(deadline_s)
        new = fingerprint << _FINGERPRINT_SHIFT | _next_tag(head) | np.uint64(value)
        if cas(table.words, first, head, new):
            table.addresses[first, 0] = high
            table.addresses[first, 1] = low
            return value, evicted


@compiled
def expire(
    table: FlowTable, start: int, stop: int, now_s: int, counts: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Remove the entries in start:stop whose deadline has passed. Returns (removed, still there).

    Those still there are added to `counts` (int64[MAX_VALUE + 1]) by their value.
    """
    removed = 0
    used = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT == _ZERO:
            continue
        if int(np.int64(table.deadlines_s[entry])) < now_s and cas(table.words, entry, word, _next_tag(word)):
            removed += 1
        else:
            used += 1
            counts[value_of(word)] += 1
    return removed, used


@compiled
def forget(table: FlowTable, start: int, stop: int, value: int) -> int:
    """Remove the entries in start:stop that hold `value`. Returns how many."""
    removed = 0
    for entry in range(start, stop):
        word = load(table.words, entry)
        if word >> _FINGERPRINT_SHIFT != _ZERO and value_of(word) == value:
            removed += cas(table.words, entry, word, _next_tag(word))
    return removed
