"""The programs that the kernel runs for each packet. Only the process that compiles them imports this.

`ingress`, where packets come in: requests get their backend's address and the mark of their VIP, replies only
the mark LEAVING. `egress`, where they leave: replies get their VIP's address. In between they are packets
between client and backend, to routing, filters and conntrack, as those that workers rewrite.
"""

import numpy as np

from loaded_mp.compiled import Bytes, compiled, goes_on
from loaded_mp.datapath.counting import count_begun, count_to_backend, count_to_client, count_words
from loaded_mp.datapath.lookup import address_row, answers, ends_of
from loaded_mp.datapath.work import Work
from loaded_mp.fastpath.decide import Change, decide, plain
from loaded_mp.fastpath.kernel import context_word, helper, scratch, set_context_word
from loaded_mp.fastpath.packet import MARK, End, put, read, settings, window, work_of
from loaded_mp.memory.counters import FastPathCounter
from loaded_mp.memory.marks import LEAVES, LEAVES_MASK, LEAVING
from loaded_mp.memory.shared import KernelSetting
from loaded_mp.memory.snapshot import PortColumn
from loaded_mp.packet.address import address_length, destination_at, source_at
from loaded_mp.packet.header import TCP, Header
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.reset import step_of

# include/uapi/linux/pkt_cls.h
NEXT, _SHOT = -1, 2
# struct __sk_buff
IFINDEX = 40
_ONE = np.uint64(1)
_ENODEV = 19
#: Here it only says whether there is an interface with this index.
_check_mtu = helper(163, 5)
_length = scratch(np.uint32, 2)


@compiled
def ingress(skb: int) -> int:
    """For each packet that comes in."""
    packet = window()
    length = read(skb, packet)
    if length:
        carry_out(skb, packet, plain(packet, length), work_of())
    return NEXT


@compiled
def carry_out(skb: int, packet: Bytes, header: Header, work: Work) -> Change:
    """Do and count what is decided about a packet that came in; what became of it."""
    change = decide(packet, header, settings(0)[KernelSetting.LONGEST], work)
    way = change.way
    if way == FastPathCounter.TO_CLIENT and not _egress_is_there(skb):
        way = FastPathCounter.FOR_WORKERS
    if way == FastPathCounter.TO_BACKEND:
        address = work.snapshot.backend_bytes[change.backend, : address_length(header.version)]
        end = End(destination_at(header.version, 0), header.upper + 2)
        if put(skb, packet, header, end, address, change.port):
            count_to_backend(work, change.backend, header)
            if header.protocol == TCP:
                count_begun(work, change.backend, step_of(packet, header))
        else:
            way = FastPathCounter.UNCHANGED
    if way in (FastPathCounter.TO_BACKEND, FastPathCounter.TO_CLIENT):
        set_context_word(skb, MARK, change.mark)
    work.counted[way] += _ONE
    return Change(way, change.backend, change.port, change.mark)


@compiled
def _egress_is_there(skb: int) -> bool:
    """Whether `egress` sees what leaves: an interface may have been made anew, and its name is in rules."""
    length, came = _length(), context_word(skb, IFINDEX)
    for name in (KernelSetting.PUBLIC, KernelSetting.PRIVATE):
        index = settings(0)[name]
        if index == 0 or (index != came and _check_mtu(skb, index, length, 0, 0) == -_ENODEV):
            return False
    return True


@compiled
def egress(skb: int) -> int:
    """For each packet that leaves."""
    mark = context_word(skb, MARK)
    if mark == LEAVING:  # no rule has told its VIP, nor that it has none: others have taken the rules away
        work_of().counted[FastPathCounter.GONE] += _ONE
        return _SHOT
    if mark & LEAVES_MASK != LEAVES:
        return NEXT
    packet = window()
    length = read(skb, packet)
    if length == 0:
        return _SHOT
    work = work_of()
    if _leave(skb, packet, length, mark & ~LEAVES_MASK, work):
        return NEXT
    work.counted[FastPathCounter.GONE] += _ONE
    return _SHOT


@compiled
def _leave(skb: int, packet: Bytes, length: int, vip: int, work: Work) -> bool:
    """Let a reply come from a VIP; False: its backend or VIP has gone."""
    snapshot = work.snapshot
    header = plain(packet, length)
    if header.reason != Reason.OK or snapshot.vip_rows[vip] < 0:
        return False
    ends = ends_of(packet, header, False)
    row = address_row(snapshot, ends.server)
    if row < 0:
        return False
    first, members = snapshot.address_members[row, 0], snapshot.address_members[row, 1]
    for at in range(first, first + members):
        if not goes_on():
            break
        backend = snapshot.members[at]
        if snapshot.backend_services[backend] == snapshot.vip_services[vip] and answers(
            snapshot, backend, header, ends.service_port
        ):
            port = ends.service_port - snapshot.backend_ports[backend, PortColumn.SHIFT]
            address = snapshot.vip_bytes[vip, : address_length(header.version)]
            count_to_client(work, backend, header)
            count_words(work, backend, packet, header)
            end = End(source_at(header.version, 0), header.upper)
            return put(skb, packet, header, end, address, port)
    return False
