"""The worker's loop: read a batch of packets, decide each, send a batch of verdicts. Nothing here is Python
at run time but the call that starts it.
"""

import errno
from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.balance import decide
from loaded_mp.datapath.fairness import Shares, crowded, learn_pace, new_shares, over_share, source_of
from loaded_mp.datapath.messages import (
    NF_DROP,
    NF_REPEAT,
    VERDICT_HEADER,
    Decision,
    Queued,
    Shorts,
    read_message,
    write_batch_verdict,
    write_verdict,
)
from loaded_mp.datapath.system import Longs, let_others_run, now_us, receive, send, waiting_bytes
from loaded_mp.datapath.work import Work, work_of
from loaded_mp.flows.atomics import load
from loaded_mp.memory.counters import WorkerCounter
from loaded_mp.memory.shared import SharedMemory, Stamp
from loaded_mp.packet.reasons import Reason

#: Packets read at once. More make no difference: a read of 64 small packets is shared by few system calls.
BATCH = 64
#: Bytes of a slot: 20 of headers, at most 490 of other attributes, 65,535 of payload attribute, VERDICT_TAIL
#: and ROOM.
_SLOT = 66_112
#: Bytes of verdicts sent at once, so that the kernel need not find room for megabytes.
_SEND_BYTES = 262_144
#: After so long the loop goes back to its caller, in microseconds.
_ROUND_US = 100_000
#: So long it looks for more packets before it sleeps: being woken costs more than a short look.
_LOOK_US = 100
#: After a longer wait packets are rare, and looking would take a core from those who prepare them.
_RARE_US = 200

_EINTR, _EAGAIN, _ENOBUFS = -errno.EINTR, -errno.EAGAIN, -errno.ENOBUFS
_ONE = np.uint64(1)


class Batch(NamedTuple):
    """A queue and the loop's own memory: packets are read into it, verdicts sent out of it."""

    descriptor: int  #: of the queue's socket
    queue: int  #: its number
    buffer: Bytes  #: uint8[(BATCH + 1) * slot]
    shorts: Shorts  #: the same memory as uint16
    messages: Longs  #: int64[BATCH, 8]: struct mmsghdr, pointing at `vectors_in`
    vectors_in: Longs  #: int64[BATCH, 2]: struct iovec, one for each slot
    message_out: Longs  #: int64[7]: struct msghdr, pointing at `vectors_out`
    vectors_out: Longs  #: int64[BATCH + 1, 2]: struct iovec, one for each verdict
    clock: Longs  #: int64[2]: struct timespec
    waited_us: Longs  #: int64[1]: how long the last sleep for packets took
    scratch: Longs  #: int64[6], for `waiting_bytes`
    shares: Shares


def new_batch(descriptor: int, queue: int) -> Batch:
    """Memory for the loop that serves `queue` on `descriptor`."""
    buffer = np.zeros((BATCH + 1) * _SLOT, np.uint8)
    vectors_in = np.zeros((BATCH, 2), np.int64)
    vectors_in[:, 0] = buffer.ctypes.data + np.arange(BATCH) * _SLOT
    vectors_in[:, 1] = _SLOT
    messages = np.zeros((BATCH, 8), np.int64)
    messages[:, 2] = vectors_in.ctypes.data + np.arange(BATCH) * 16
    messages[:, 3] = 1
    return Batch(
        descriptor,
        queue,
        buffer,
        buffer.view(np.uint16),
        messages,
        vectors_in,
        np.zeros(7, np.int64),
        np.zeros((BATCH + 1, 2), np.int64),
        np.zeros(2, np.int64),
        np.zeros(1, np.int64),
        np.zeros(6, np.int64),
        new_shares(BATCH),
    )


@compiled
def serve(batch: Batch, memory: SharedMemory, worker: int, replacing: bool) -> int:
    """Serve a queue for about a tenth of a second: packets served, or -errno of a broken socket.

    `replacing`: another process served the queue before, and what it had read is given back first.
    """
    stamps, counted = memory.stamps[worker], memory.workers[worker]
    started_us = now = now_us(batch.clock)
    served = 0
    while now - started_us < _ROUND_US:
        count = next_batch(batch, now)
        now = now_us(batch.clock)
        stamps[Stamp.HEARTBEAT_MS] = np.uint64(now // 1000)
        if count == _ENOBUFS:
            counted[WorkerCounter.RECEIVE_OVERRUNS] += _ONE
            continue
        if count < 0 and count not in (_EAGAIN, _EINTR):
            return count
        # The generation is read after the wait: a buffer that was idle then may be rewritten by now.
        stamps[Stamp.GENERATION] = load(memory.generation, 0)
        if count <= 0:
            break
        last = _last_id(batch, count)
        if last:
            if replacing:
                _give_back_before(batch, count)
                replacing = False
            stamps[Stamp.LAST_READ_ID] = np.uint64(last)
        _decide_all(batch, count, work_of(memory, worker, now // 1_000_000), now)
        counted[WorkerCounter.BATCHES] += _ONE
        served += count
    return served


@compiled
def next_batch(batch: Batch, started_us: int) -> int:
    """Read what is there; if nothing is, look again for a moment, then sleep until something comes."""
    while batch.waited_us[0] < _RARE_US and now_us(batch.clock) - started_us < _LOOK_US:
        count = receive(batch.descriptor, batch.messages, False)
        if count != _EAGAIN:
            return count
        let_others_run()
    count = receive(batch.descriptor, batch.messages, True)
    batch.waited_us[0] = now_us(batch.clock) - started_us
    return count


@compiled
def _decide_all(batch: Batch, count: int, work: Work, read_us: int) -> None:
    """Decide the packets in the first `count` slots and send the verdicts."""
    full = count == BATCH
    thin = crowded(batch.shares, waiting_bytes(batch.descriptor, batch.scratch) if full else 0, read_us)
    first = verdicts = waiting = packet_bytes = 0
    for i in range(count):
        queued = message(batch, i)
        dropped = thin and over_share(batch.shares, i, source_of(batch.buffer, queued, work), read_us)
        if queued.packet_id == 0:
            continue
        packet_bytes += queued.end - queued.start
        if dropped:
            decision = Decision(NF_DROP, False, 0, 0, Reason.OVER_SHARE)
        else:
            decision = decide(batch.buffer, queued, work)
        work.reasons[decision.reason] += _ONE
        length = write_verdict(batch.buffer, batch.shorts, queued, batch.queue, decision)
        length = (length + 3) & ~3
        if waiting + length > _SEND_BYTES and verdicts > first:
            _send(batch, first, verdicts, work)
            first, waiting = verdicts, 0
        put_out(batch, verdicts, queued.start - VERDICT_HEADER, length)
        verdicts += 1
        waiting += length
    if verdicts > first:
        _send(batch, first, verdicts, work)
    work.counted[WorkerCounter.PACKETS] += np.uint64(verdicts)
    if full:
        learn_pace(batch.shares, count, packet_bytes, now_us(batch.clock) - read_us)


@compiled
def _send(batch: Batch, first: int, stop: int, work: Work) -> None:
    """Send the verdicts first:stop, one by one if they do not go together."""
    if send_out(batch, first, stop) == 0:
        return
    for i in range(first, stop):
        if send_out(batch, i, i + 1) != 0:
            work.counted[WorkerCounter.UNSENT_VERDICTS] += _ONE


@compiled
def message(batch: Batch, i: int) -> Queued:
    """The packet in slot i."""
    # mmsghdr.msg_len, the low half of its last word on every little-endian machine
    return read_message(batch.buffer, batch.shorts, i * _SLOT, batch.messages[i, 7] & 0xFFFFFFFF)


@compiled
def put_out(batch: Batch, i: int, at: int, length: int) -> None:
    """Let verdict i be the `length` bytes at offset `at` of the buffer."""
    batch.vectors_out[i, 0] = batch.buffer.ctypes.data + at
    batch.vectors_out[i, 1] = length


@compiled
def send_out(batch: Batch, first: int, stop: int) -> int:
    """Send the verdicts first:stop as one message: 0 or -errno."""
    batch.message_out[2] = batch.vectors_out.ctypes.data + first * 16
    batch.message_out[3] = stop - first
    result = send(batch.descriptor, batch.message_out)
    while result == _EINTR:
        result = send(batch.descriptor, batch.message_out)
    return result


@compiled
def give_back(batch: Batch, last_id: int) -> int:
    """Let the packets up to `last_id` pass the queue's rule again: 0 or -errno.

    They were read by a process that died before it decided them.
    """
    at = BATCH * _SLOT
    length = write_batch_verdict(batch.buffer, batch.shorts, at, batch.queue, NF_REPEAT, last_id)
    put_out(batch, BATCH, at, length)
    return send_out(batch, BATCH, BATCH + 1)


@compiled
def _give_back_before(batch: Batch, count: int) -> None:
    """Give back what was read before the packets in the first `count` slots."""
    for i in range(count):
        queued = message(batch, i)
        if queued.packet_id:
            if queued.packet_id > 1:
                give_back(batch, queued.packet_id - 1)
            return


@compiled
def _last_id(batch: Batch, count: int) -> int:
    for i in range(count - 1, -1, -1):
        queued = message(batch, i)
        if queued.packet_id:
            return queued.packet_id
    return 0
