"""nfnetlink_queue messages: finding a packet in one, turning it into the verdict on it.

Constants and layouts are those of include/uapi/linux/netlink.h, netfilter/nfnetlink.h and
netfilter/nfnetlink_queue.h. Netlink numbers are in the byte order of the machine; what netfilter puts
inside attributes is in network byte order.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.packet.checksum import read16, write16
from loaded_mp.packet.reasons import Reason

Shorts = npt.NDArray[np.uint16]

_MESSAGE_HEADER = 20  # struct nlmsghdr and struct nfgenmsg
_NLM_F_REQUEST = 1
_SUBSYSTEM_QUEUE = 3 << 8
_NFQNL_MSG_PACKET, _NFQNL_MSG_VERDICT, _NFQNL_MSG_VERDICT_BATCH = 0, 1, 3
_NFQA_PACKET_HDR, _NFQA_VERDICT_HDR, _NFQA_MARK = 1, 2, 3
_NFQA_PAYLOAD, _NFQA_CAP_LEN, _NFQA_SKB_INFO = 10, 13, 14
_NFQA_SKB_CSUMNOTREADY, _NFQA_SKB_GSO = 1, 2
#: The bits of an attribute's type that are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
_TYPE_MASK = 0x3FFF

NF_DROP, NF_ACCEPT, NF_REPEAT = 0, 1, 4
#: include/uapi/linux/netfilter.h, enum nf_inet_hooks.
HOOK_PREROUTING, HOOK_LOCAL_IN, HOOK_LOCAL_OUT, HOOK_POSTROUTING = 0, 1, 3, 4

#: Bytes of a verdict before its payload: both headers, the verdict and the payload attribute's header.
VERDICT_HEADER = 36
#: Bytes that a verdict may need behind its payload: padding, and the attribute of the mark.
VERDICT_TAIL = 3 + 8


class Queued(NamedTuple):
    """A packet as it lies in a received message; offsets count from the start of the buffer."""

    packet_id: int  #: what the verdict refers to; 0 if the message holds no packet
    hook: int  #: netfilter hook number
    start: int  #: offset of the packet
    end: int  #: offset of the first byte behind what was copied of it
    cut: bool  #: not all of it was copied
    checksum_ready: bool  #: False: the transport checksum is only the pseudo-header's sum
    mark: int  #: of the packet; 0: none
    several: bool  #: the kernel will cut it into several (GSO): it must not become shorter than one of them


class Decision(NamedTuple):
    """What is to be done with a packet."""

    verdict: int  #: an NF_*
    changed: bool  #: the packet was changed in place
    end: int  #: offset of the first byte behind it, if it was changed
    mark: int  #: for the packet; 0: none
    reason: Reason


@compiled
def read_message(buffer: Bytes, shorts: Shorts, at: int, length: int) -> Queued:
    """The packet in the netlink message of `length` bytes at offset `at` (a multiple of 4).

    `shorts` is the same memory as uint16[], for numbers in the byte order of the machine.
    """
    packet_id = hook = start = end = mark = 0
    cut = False
    ready, several = True, False
    stop = at + length
    if length >= _MESSAGE_HEADER and shorts[at // 2 + 2] == _SUBSYSTEM_QUEUE | _NFQNL_MSG_PACKET:
        at += _MESSAGE_HEADER
        while at + 4 <= stop:
            size = signed(shorts[at // 2])
            kind = signed(shorts[at // 2 + 1]) & _TYPE_MASK
            if size < 4 or at + size > stop:
                break
            if kind == _NFQA_PACKET_HDR and size >= 11:
                packet_id = read16(buffer, at + 4) << 16 | read16(buffer, at + 6)
                hook = signed(buffer[at + 10])
            elif kind == _NFQA_MARK and size >= 8:
                mark = read16(buffer, at + 4) << 16 | read16(buffer, at + 6)
            elif kind == _NFQA_CAP_LEN:
                cut = True
            elif kind == _NFQA_SKB_INFO and size >= 8:
                ready = (buffer[at + 7] & _NFQA_SKB_CSUMNOTREADY) == 0
                several = (buffer[at + 7] & _NFQA_SKB_GSO) != 0
            elif kind == _NFQA_PAYLOAD:
                start, end = at + 4, at + size
            at += (size + 3) & ~3
    return Queued(packet_id, hook, start, end, cut, ready, mark, several)


@compiled
def from_client(queued: Queued) -> bool:
    """Whether a packet was queued on its way to a VIP, and not as a reply."""
    return queued.hook in (HOOK_PREROUTING, HOOK_LOCAL_OUT)


@compiled
def _write_header(shorts: Shorts, at: int, length: int, kind: int, queue: int) -> None:
    first = at // 2
    shorts[first] = np.uint16(length & 0xFFFF)
    shorts[first + 1] = np.uint16(length >> 16)
    shorts[first + 2] = np.uint16(_SUBSYSTEM_QUEUE | kind)
    shorts[first + 3] = np.uint16(_NLM_F_REQUEST)
    shorts[first + 4 : first + 9] = np.uint16(0)
    shorts[first + 9] = np.uint16((queue & 0xFF) << 8 | queue >> 8)


@compiled
def _write_verdict_header(buffer: Bytes, shorts: Shorts, at: int, verdict: int, packet_id: int) -> None:
    """struct nfqnl_msg_verdict_hdr as an attribute, 12 bytes."""
    shorts[at // 2] = np.uint16(12)
    shorts[at // 2 + 1] = np.uint16(_NFQA_VERDICT_HDR)
    buffer[at + 4 : at + 7] = np.uint8(0)
    buffer[at + 7] = np.uint8(verdict)
    for i in range(4):
        buffer[at + 8 + i] = np.uint8(packet_id >> (24 - 8 * i) & 0xFF)


@compiled
def _write_mark(buffer: Bytes, shorts: Shorts, at: int, mark: int) -> int:
    """A mark as an attribute; returns its length in bytes."""
    shorts[at // 2] = np.uint16(8)
    shorts[at // 2 + 1] = np.uint16(_NFQA_MARK)
    write16(buffer, at + 4, mark >> 16)
    write16(buffer, at + 6, mark & 0xFFFF)
    return 8


@compiled
def write_verdict(buffer: Bytes, shorts: Shorts, queued: Queued, queue: int, decision: Decision) -> int:
    """Put the verdict into the bytes before the packet, which becomes its payload if it was changed.

    Otherwise the packet stays as it is; its first bytes here may be overwritten. Either way it gets the mark,
    if there is one. The verdict begins at queued.start - VERDICT_HEADER and ends at most VERDICT_TAIL behind
    the packet; returns its length in bytes.
    """
    at = queued.start - VERDICT_HEADER
    length = VERDICT_HEADER - 4
    if decision.changed:
        size = 4 + decision.end - queued.start
        shorts[(at + length) // 2] = np.uint16(size)
        shorts[(at + length) // 2 + 1] = np.uint16(_NFQA_PAYLOAD)
        length += size
    if decision.mark:
        length = (length + 3) & ~3
        length += _write_mark(buffer, shorts, at + length, decision.mark)
    _write_header(shorts, at, length, _NFQNL_MSG_VERDICT, queue)
    _write_verdict_header(buffer, shorts, at + _MESSAGE_HEADER, decision.verdict, queued.packet_id)
    return length


@compiled
def write_batch_verdict(
    buffer: Bytes, shorts: Shorts, at: int, queue: int, verdict: int, last_id: int
) -> int:
    """Put a verdict on every waiting packet up to `last_id` at offset `at`; returns its length in bytes.

    The packets lose their marks: a reply that passed the rules again with one would be taken for a request
    there, and leave with the backend's own address.
    """
    length = VERDICT_HEADER - 4
    length += _write_mark(buffer, shorts, at + length, 0)
    _write_header(shorts, at, length, _NFQNL_MSG_VERDICT_BATCH, queue)
    _write_verdict_header(buffer, shorts, at + _MESSAGE_HEADER, verdict, last_id)
    return length
