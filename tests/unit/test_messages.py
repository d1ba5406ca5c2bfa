"""Queue messages as the kernel lays them out (net/netfilter/nfnetlink_queue.c), built here with struct."""

import socket
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.datapath.messages import (
    NF_ACCEPT,
    NF_DROP,
    NF_REPEAT,
    VERDICT_HEADER,
    Decision,
    read_message,
    write_batch_verdict,
    write_verdict,
)
from loaded_mp.packet.reasons import Reason

QUEUE = 0x0102
CAP_LEN, SKB_INFO, PAYLOAD, MARK, PACKET_HDR = 13, 14, 10, 3, 1


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(packet_id: int, hook: int, payload: bytes, *more: bytes, kind: int = 3 << 8) -> bytes:
    body = attribute(PACKET_HDR, struct.pack("!IHB", packet_id, 0x0800, hook)) + b"".join(more)
    body += attribute(PAYLOAD, payload)
    header = struct.pack("=IHHIIBBH", 20 + len(body), kind, 0, 0, 0, socket.AF_INET, 0, socket.htons(QUEUE))
    return header + body


def buffer_with(data: bytes) -> np.ndarray:
    buffer = np.zeros(70_000, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    return buffer


packets = st.binary(min_size=1, max_size=300)


@settings(deadline=None)
@given(st.integers(1, 2**32 - 1), st.integers(0, 4), packets, st.booleans(), st.sampled_from([0, 1, 2, 3, 5]))
def test_reads_what_the_kernel_writes(packet_id: int, hook: int, payload: bytes, cut: bool, skb: int) -> None:
    more = [attribute(SKB_INFO, struct.pack("!I", skb))]
    if cut:
        more.append(attribute(CAP_LEN, struct.pack("!I", 65_535)))
    data = message(packet_id, hook, payload, *more)
    buffer = buffer_with(data)
    queued = read_message(buffer, buffer.view(np.uint16), 0, len(data))
    assert (queued.packet_id, queued.hook, queued.cut) == (packet_id, hook, cut)
    assert queued.checksum_ready == (skb & 1 == 0)
    assert bytes(buffer[queued.start : queued.end]) == payload
    assert queued.start >= VERDICT_HEADER


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_confuse_it(data: bytes) -> None:
    buffer = buffer_with(data)
    queued = read_message(buffer, buffer.view(np.uint16), 0, len(data))
    assert 0 <= queued.start <= queued.end <= len(data)


def test_error_messages_hold_no_packet() -> None:
    data = struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -2) + bytes(16)
    buffer = buffer_with(data)
    assert read_message(buffer, buffer.view(np.uint16), 0, len(data)).packet_id == 0


@settings(deadline=None)
@given(
    st.integers(1, 2**32 - 1),
    packets,
    st.sampled_from([NF_DROP, NF_ACCEPT]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_verdict_goes_just_before_its_packet(
    packet_id: int, payload: bytes, verdict: int, changed: bool, mark: int
) -> None:
    data = message(packet_id, 0, payload)
    buffer = buffer_with(data)
    shorts = buffer.view(np.uint16)
    queued = read_message(buffer, shorts, 0, len(data))
    decision = Decision(verdict, changed, queued.end, mark, Reason.OK)
    length = write_verdict(buffer, shorts, queued, QUEUE, decision)
    at = queued.start - VERDICT_HEADER
    written = bytes(buffer[at : at + length])
    body = attribute(2, struct.pack("!II", verdict, packet_id))
    if changed:
        body += struct.pack("=HH", 4 + len(payload), PAYLOAD) + payload
    if mark:
        body += bytes(-len(body) % 4)
        body += attribute(MARK, struct.pack("!I", mark))
    assert (
        written
        == struct.pack("=IHHIIBBH", 20 + len(body), 3 << 8 | 1, 1, 0, 0, 0, 0, socket.htons(QUEUE)) + body
    )


def test_a_batch_verdict_takes_marks_away() -> None:
    buffer = buffer_with(b"")
    length = write_batch_verdict(buffer, buffer.view(np.uint16), 64, QUEUE, NF_REPEAT, 77)
    body = attribute(2, struct.pack("!II", NF_REPEAT, 77)) + attribute(3, bytes(4))
    expected = struct.pack("=IHHIIBBH", 20 + len(body), 3 << 8 | 3, 1, 0, 0, 0, 0, socket.htons(QUEUE)) + body
    assert bytes(buffer[64 : 64 + length]) == expected
