"""The program that sends packets straight to a neighbour. Only the process that compiles it imports this.

`redirect` stands in the place of `ingress`, does the same, and goes on from there. Requests between the
public and the private interface, and replies back, pass by FORWARD rules, conntrack and `egress`: what is
known of the connection of a reply is only whether it is one of those that came by no VIP. What routing sends
elsewhere, or what does not fit there, goes through the stack.
"""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.datapath.counting import count_to_client, count_words
from loaded_mp.datapath.lookup import address_row, as_client_asks, ends_of
from loaded_mp.datapath.work import Work
from loaded_mp.fastpath.decide import DNS, plain
from loaded_mp.fastpath.direct import connection_of, note, noted
from loaded_mp.fastpath.kernel import context_word, helper, scratch, set_context_word
from loaded_mp.fastpath.packet import (
    ETHERNET,
    MARK,
    End,
    load_bytes,
    put,
    read,
    settings,
    shared_field,
    swapped,
    take_hop,
    window,
    work_of,
)
from loaded_mp.fastpath.program import IFINDEX, NEXT, carry_out
from loaded_mp.memory.counters import FastPathCounter
from loaded_mp.memory.shared import KernelSetting
from loaded_mp.memory.snapshot import Flag
from loaded_mp.packet.address import address_length, source_at
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.header import KIND_PORTS, KIND_QUERY, TCP, Header
from loaded_mp.packet.reset import Step, step_of

#: A struct bpf_fib_lookup, in 32-bit words of the machine's byte order.
Hop = npt.NDArray[np.uint32]

# include/uapi/linux/bpf.h
_fib_lookup = helper(69, 4)
_redirect_neighbour = helper(152, 4)
_SKIP_NEIGHBOUR = 4
#: Bytes of a struct bpf_fib_lookup and of a struct bpf_redir_neigh.
_HOP_BYTES, _NEIGHBOUR_BYTES = 64, 20
_AF_INET, _AF_INET6 = 2, 10
# struct __sk_buff
_GSO_SIZE = 176

_UDP_HEADER = 8
_ECHO_REPLY, _ECHO_REPLY6 = 0, 129  # RFC 792; RFC 4443, 4.2
#: Services of whose backends a packet alone does not say which VIP it will come from, if from any.
_UNSURE = int(Flag.SEVERAL | Flag.ANYTHING)
_ONE = np.uint64(1)

_hop, _direct = scratch(np.uint32, _HOP_BYTES // 4), shared_field("kernel_direct")


@compiled
def redirect(skb: int) -> int:
    """For each packet that comes in."""
    packet, hop = window(), _hop()
    length = read(skb, packet)
    if length == 0:
        return NEXT
    work = work_of()
    header = plain(packet, length)
    done = carry_out(skb, packet, header, work)
    way, backend = done.way, done.backend
    if way not in (FastPathCounter.TO_BACKEND, FastPathCounter.TO_CLIENT, FastPathCounter.FOREIGN):
        return NEXT
    if way == FastPathCounter.FOREIGN:
        _note_direct(packet, header, True, work)
        return NEXT
    to_client = way == FastPathCounter.TO_CLIENT
    out = settings(0)[KernelSetting.PUBLIC if to_client else KernelSetting.PRIVATE]
    came = settings(0)[KernelSetting.PRIVATE if to_client else KernelSetting.PUBLIC]
    if work.snapshot.backend_flags[backend] & _UNSURE or context_word(skb, IFINDEX) != came:
        return NEXT
    if to_client and not _is_reply_by_vip(packet, header, work):
        return NEXT
    if _look_up(skb, packet, header, hop) != out:
        return NEXT
    if to_client and not _leave(skb, packet, header, backend, work):
        return NEXT
    take_hop(skb, packet, header)
    set_context_word(skb, MARK, 0)  # of rules that it does not pass
    work.counted[FastPathCounter.REDIRECTED] += _ONE
    return _redirect_neighbour(out, hop[7:12], _NEIGHBOUR_BYTES, 0)


@compiled
def _is_reply_by_vip(packet: Bytes, header: Header, work: Work) -> bool:
    """Whether a backend's packet to a client with a flow answers what came by a VIP."""
    if not _may_answer(packet, header):
        _note_direct(packet, header, False, work)
        return False
    return not noted(_direct(0), connection_of(work.table.secret, ends_of(packet, header, False)))


@compiled
def _may_answer(packet: Bytes, header: Header) -> bool:
    if header.kind == KIND_QUERY:
        return signed(packet[header.upper]) in (_ECHO_REPLY, _ECHO_REPLY6)
    if header.protocol == TCP:
        return bool(step_of(packet, header) != Step.BEGINS)
    return read16(packet, header.upper + 2) != DNS


@compiled
def _note_direct(packet: Bytes, header: Header, from_client: bool, work: Work) -> None:
    """Remember a packet's connection if it is one with a backend that comes by no VIP."""
    ends = ends_of(packet, header, from_client)
    if address_row(work.snapshot, ends.server) >= 0:
        note(_direct(0), connection_of(work.table.secret, ends))


@compiled
def _leave(skb: int, packet: Bytes, header: Header, backend: int, work: Work) -> bool:
    """Let a reply come from the VIP of its backend's service; False: nothing was changed."""
    snapshot = work.snapshot
    vip = signed(snapshot.backend_vips[backend])
    if vip < 0:  # it was taken away since `ingress` looked
        return False
    asked = as_client_asks(snapshot, backend, header, ends_of(packet, header, False))
    address = snapshot.vip_bytes[vip, : address_length(header.version)]
    end = End(source_at(header.version, 0), header.upper)
    if not put(skb, packet, header, end, address, asked.service_port):
        return False
    count_to_client(work, backend, header)
    count_words(work, backend, packet, header)
    return True


@compiled
def _look_up(skb: int, packet: Bytes, header: Header, hop: Hop) -> int:
    """The interface to which routing sends a packet, if that takes its length; else 0.

    The last words of `hop` become a struct bpf_redir_neigh: by whom the packet goes.
    """
    segment, length = context_word(skb, _GSO_SIZE), header.end
    if segment:
        upper = 4 * (signed(packet[header.upper + 12]) >> 4) if header.protocol == TCP else _UDP_HEADER
        length = header.upper + upper + segment
    source_port = destination_port = 0
    if header.kind == KIND_PORTS:
        source_port = swapped(read16(packet, header.upper))
        destination_port = swapped(read16(packet, header.upper + 2))
    hop[0] = (_AF_INET if header.version == 4 else _AF_INET6) | header.protocol << 8 | source_port << 16
    hop[1] = destination_port | min(length, 0xFFFF) << 16
    hop[2] = context_word(skb, IFINDEX)
    if header.version == 4:
        hop[3] = packet[1]  # the type of service
        load_bytes(skb, ETHERNET + 12, hop[4:5], 4)
        load_bytes(skb, ETHERNET + 16, hop[8:9], 4)
    else:
        load_bytes(skb, ETHERNET + 8, hop[4:12], 32)
    if _fib_lookup(skb, hop, _HOP_BYTES, _SKIP_NEIGHBOUR) != 0:
        return 0
    hop[7] = hop[0] & 0xFF
    return signed(hop[2])
