"""The worker's loop: read a batch of packets, decide each, send a batch of verdicts. Nothing here is Python
at run time but the call that starts it.
"""

import errno
from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.balance import Shared, to_backend, to_client
from loaded_mp.datapath.messages import (
    HOOK_PREROUTING,
    NF_ACCEPT,
    NF_DROP,
    NF_REPEAT,
    VERDICT_HEADER,
    Halves,
    Queued,
    read_message,
    write_batch_verdict,
    write_verdict,
)
from loaded_mp.datapath.system import Longs, let_others_run, now_us, receive, send
from loaded_mp.flows.atomics import Words, load
from loaded_mp.memory.shared import (
    BATCHES,
    EVICTIONS,
    GENERATION,
    HEARTBEAT_MS,
    LAST_READ_ID,
    OVERRUNS,
    PACKETS,
    UNSENT,
    SharedMemory,
)
from loaded_mp.memory.snapshot import Snapshot
from loaded_mp.packet.header import KIND_PORTS, parse
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.rewrite import complete_checksum

#: Packets read at once. More make no difference: a read of 64 small packets is shared by few system calls.
BATCH = 64
#: Bytes of a slot: 20 of headers, at most 490 of other attributes, 65,535 of payload attribute.
_SLOT = 66_048
#: Bytes of verdicts sent at once, so that the kernel need not find room for megabytes.
_SEND_BYTES = 262_144
#: After so long the loop goes back to its caller, in microseconds.
_ROUND_US = 100_000
#: So long it looks for more packets before it sleeps: being woken costs more than a short look.
_LOOK_US = 100
#: After a longer wait packets are rare, and looking would take a core from those who prepare them.
_RARE_US = 200

_OK = int(Reason.OK)
_CUT = int(Reason.CUT)
_CHECKSUM_UNFINISHED = int(Reason.CHECKSUM_UNFINISHED)
_NO_SERVICE, _NO_FLOW, _LINK = int(Reason.NO_SERVICE), int(Reason.NO_FLOW), int(Reason.LINK)
_BAD_QUOTE = int(Reason.BAD_QUOTE)
_UNKNOWN_EXTENSION = int(Reason.UNKNOWN_EXTENSION)
_CHECKSUM_COVERS_ADDRESSES = int(Reason.CHECKSUM_COVERS_ADDRESSES)
_EINTR, _EAGAIN, _ENOBUFS = -errno.EINTR, -errno.EAGAIN, -errno.ENOBUFS


class Batch(NamedTuple):
    """The loop's own memory: packets are read into it, verdicts sent out of it."""

    buffer: Bytes  #: uint8[BATCH * slot]
    halves: Halves  #: the same memory as uint16
    messages: Longs  #: int64[BATCH, 8]: struct mmsghdr, pointing at `vectors_in`
    vectors_in: Longs  #: int64[BATCH, 2]: struct iovec, one for each slot
    message_out: Longs  #: int64[7]: struct msghdr, pointing at `vectors_out`
    vectors_out: Longs  #: int64[BATCH + 1, 2]: struct iovec, one for each verdict
    kernel: Longs  #: int64[2]: struct sockaddr_nl of the kernel, 12 bytes
    clock: Longs  #: int64[2]: struct timespec
    waited_us: Longs  #: int64[1]: how long the last sleep for packets took


def new_batch() -> Batch:
    """Memory for one worker's loop."""
    buffer = np.zeros((BATCH + 1) * _SLOT, np.uint8)
    vectors_in = np.zeros((BATCH, 2), np.int64)
    vectors_in[:, 0] = buffer.ctypes.data + np.arange(BATCH) * _SLOT
    vectors_in[:, 1] = _SLOT
    messages = np.zeros((BATCH, 8), np.int64)
    messages[:, 2] = vectors_in.ctypes.data + np.arange(BATCH) * 16
    messages[:, 3] = 1
    kernel = np.zeros(2, np.int64)
    kernel.view(np.uint16)[0] = 16  # AF_NETLINK
    vectors_out = np.zeros((BATCH + 1, 2), np.int64)
    message_out = np.zeros(7, np.int64)
    message_out[0] = kernel.ctypes.data
    message_out[1] = 12
    message_out[2] = vectors_out.ctypes.data
    return Batch(
        buffer,
        buffer.view(np.uint16),
        messages,
        vectors_in,
        message_out,
        vectors_out,
        kernel,
        np.zeros(2, np.int64),
        np.zeros(1, np.int64),
    )


@compiled
def decide(
    buffer: Bytes, queued: Queued, snapshot: Snapshot, shared: Shared, now_s: int
) -> tuple[int, bool, int, int]:
    """Verdict on a packet, whether it was changed, its mark or 0, and the Reason."""
    start = queued.start
    header = parse(buffer, start, queued.end, queued.cut)
    reason, mark = header.reason, 0
    from_client = queued.hook == HOOK_PREROUTING
    if reason == _OK:
        if from_client:
            reason, mark = to_backend(buffer, start, header, snapshot, shared, now_s)
        else:
            reason = to_client(buffer, start, header, snapshot, shared)
    if reason == _OK:
        if mark:
            return NF_REPEAT, False, mark, _OK
        if queued.cut:
            return NF_DROP, False, 0, _CUT
        if not queued.checksum_ready:
            if header.kind != KIND_PORTS:
                return NF_DROP, False, 0, _CHECKSUM_UNFINISHED
            complete_checksum(buffer, header, start)
        return NF_ACCEPT, True, 0, _OK
    if reason in (_NO_SERVICE, _NO_FLOW, _LINK):
        return NF_ACCEPT, False, 0, reason
    # What backends, routers and this host send is theirs as long as no flow of ours is touched.
    if not from_client and reason in (_BAD_QUOTE, _UNKNOWN_EXTENSION, _CHECKSUM_COVERS_ADDRESSES):
        return NF_ACCEPT, False, 0, reason
    return NF_DROP, False, 0, reason


@compiled
def _send(descriptor: int, batch: Batch, row: Words, first: int, verdicts: int) -> None:
    """Send the verdicts first:first+verdicts, one by one if they do not go together."""
    batch.message_out[2] = batch.vectors_out.ctypes.data + first * 16
    batch.message_out[3] = verdicts
    result = send(descriptor, batch.message_out)
    while result == _EINTR:
        result = send(descriptor, batch.message_out)
    if result == 0:
        return
    if verdicts == 1:
        row[UNSENT] += np.uint64(1)
        return
    for i in range(first, first + verdicts):
        batch.message_out[2] = batch.vectors_out.ctypes.data + i * 16
        batch.message_out[3] = 1
        if send(descriptor, batch.message_out) != 0:
            row[UNSENT] += np.uint64(1)


@compiled
def _message_length(batch: Batch, i: int) -> int:
    """Bytes in slot i (mmsghdr.msg_len, the low half of its last word on every little-endian machine)."""
    return int(np.int64(batch.messages[i, 7] & 0xFFFFFFFF))


@compiled
def give_back(descriptor: int, queue: int, batch: Batch, last_id: int) -> int:
    """Let the packets up to `last_id` pass the queue's rule again: 0 or -errno.

    They were read by a process that died before it decided them.
    """
    at = BATCH * _SLOT
    length = write_batch_verdict(batch.buffer, batch.halves, at, queue, NF_REPEAT, last_id)
    batch.vectors_out[BATCH, 0] = batch.buffer.ctypes.data + at
    batch.vectors_out[BATCH, 1] = length
    batch.message_out[2] = batch.vectors_out.ctypes.data + BATCH * 16
    batch.message_out[3] = 1
    return send(descriptor, batch.message_out)


@compiled
def _first_id(batch: Batch, count: int) -> int:
    for i in range(count):
        queued = read_message(batch.buffer, batch.halves, i * _SLOT, _message_length(batch, i))
        if queued.packet_id:
            return queued.packet_id
    return 0


@compiled
def _last_id(batch: Batch, count: int) -> int:
    for i in range(count - 1, -1, -1):
        queued = read_message(batch.buffer, batch.halves, i * _SLOT, _message_length(batch, i))
        if queued.packet_id:
            return queued.packet_id
    return 0


@compiled
def _handle(
    descriptor: int, queue: int, batch: Batch, count: int, snapshot: Snapshot, shared: Shared,
    reasons: Words, row: Words, now_s: int,
) -> None:  # fmt: skip
    """Decide the packets in the first `count` slots and send the verdicts."""
    first = verdicts = waiting = 0
    address = batch.buffer.ctypes.data
    for i in range(count):
        queued = read_message(batch.buffer, batch.halves, i * _SLOT, _message_length(batch, i))
        if queued.packet_id == 0:
            continue
        verdict, changed, mark, reason = decide(batch.buffer, queued, snapshot, shared, now_s)
        reasons[reason] += np.uint64(1)
        length = write_verdict(batch.buffer, batch.halves, queued, queue, verdict, changed, mark)
        length = (length + 3) & ~3
        if waiting + length > _SEND_BYTES and verdicts > first:
            _send(descriptor, batch, row, first, verdicts - first)
            first, waiting = verdicts, 0
        batch.vectors_out[verdicts, 0] = address + queued.start - VERDICT_HEADER
        batch.vectors_out[verdicts, 1] = length
        verdicts += 1
        waiting += length
    if verdicts > first:
        _send(descriptor, batch, row, first, verdicts - first)
    row[PACKETS] += np.uint64(verdicts)


@compiled
def next_batch(descriptor: int, batch: Batch, started_us: int) -> int:
    """Read what is there; if nothing is, look again for a moment, then sleep until something comes."""
    while batch.waited_us[0] < _RARE_US and now_us(batch.clock) - started_us < _LOOK_US:
        count = receive(descriptor, batch.messages, False)
        if count != _EAGAIN:
            return count
        let_others_run()
    count = receive(descriptor, batch.messages, True)
    batch.waited_us[0] = now_us(batch.clock) - started_us
    return count


@compiled
def serve(
    descriptor: int, queue: int, batch: Batch, memory: SharedMemory, worker: int, replacing: bool
) -> int:
    """Serve a queue for about a tenth of a second: packets served, or -errno of a broken socket.

    `replacing`: another process served the queue before, and what it had read is given back first.
    """
    row = memory.workers[worker]
    reasons = memory.reasons[worker]
    shared = Shared(memory.table, memory.cursors, memory.traffic[worker], row[EVICTIONS : EVICTIONS + 1])
    started_us = now = now_us(batch.clock)
    served = 0
    while now - started_us < _ROUND_US:
        count = next_batch(descriptor, batch, now)
        now = now_us(batch.clock)
        row[HEARTBEAT_MS] = np.uint64(now // 1000)
        if count in (_EAGAIN, _EINTR):
            count = 0
        elif count == _ENOBUFS:
            row[OVERRUNS] += np.uint64(1)
            continue
        elif count < 0:
            return count
        # The generation is read after the wait: a buffer that was idle then may be rewritten by now.
        generation = load(memory.generation, 0)
        row[GENERATION] = generation
        if count == 0:
            break
        last = _last_id(batch, count)
        if last:
            if replacing:
                first = _first_id(batch, count)
                if first > 1:
                    give_back(descriptor, queue, batch, first - 1)
                replacing = False
            row[LAST_READ_ID] = np.uint64(last)
        snapshot = memory.snapshots[generation & np.uint64(1)]
        _handle(descriptor, queue, batch, count, snapshot, shared, reasons, row, now // 1_000_000)
        row[BATCHES] += np.uint64(1)
        served += count
    return served
