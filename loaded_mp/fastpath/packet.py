"""How programs see a packet and the shared memory. Only the process that compiles them imports this.

Nothing tells a program whether a checksum is one already, or is left to the network card, or was made by it:
only the kernel's helpers know. So decisions are made on a copy of the first bytes, with the worker's
functions, and addresses are put into the packet by helpers.
"""

from typing import Any, NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.datapath.work import Work
from loaded_mp.fastpath.kernel import (
    context_word,
    helper,
    opaque,
    scratch,
    shared,
    shared_row,
)
from loaded_mp.fastpath.layout import field_of, offset_of
from loaded_mp.flows.table import FlowTable
from loaded_mp.memory.shared import MAX_CORES, KernelSetting
from loaded_mp.memory.snapshot import Snapshot
from loaded_mp.packet.checksum import adjust, change, change16, fold, read16
from loaded_mp.packet.header import ICMP, KIND_PORTS, UDP, Header

# include/uapi/linux/bpf.h
_core = helper(8, 0)
_store_bytes = helper(9, 5)
_l4_csum_replace = helper(11, 5)
load_bytes = helper(26, 4)
_ktime_coarse_ns = helper(160, 0)
_PSEUDO_HDR, _MARK_MANGLED_0, _RECOMPUTE_CSUM = 0x10, 0x20, 1
# struct __sk_buff
_LEN, _PKT_TYPE, MARK, _PROTOCOL, _VLAN_PRESENT = 0, 4, 8, 16, 20
# As a program reads them, on a little-endian machine.
_IPV4, _IPV6 = 0x0008, 0xDD86

ETHERNET = 14
#: What is copied of a packet: the longest plain headers are IPv6's and TCP's, 60 bytes.
_WINDOW = 64
_SHORTEST = 28
_BILLION, _ONE = np.uint64(1_000_000_000), np.uint64(1)
_TABLE_AT = offset_of("words")
_APART = offset_of("odd_seeds") - offset_of("even_seeds")


class End(NamedTuple):
    """Where in a packet its source or destination is."""

    address_at: int
    port_at: int


def shared_field(name: str) -> Any:
    """A function that gives a field of the shared memory, so many bytes further on."""
    field = field_of(name)
    return shared(offset_of(name), field.dtype, field.shape)


window = scratch(np.uint8, _WINDOW)
_words, _seconds, _no_keys = shared_row(np.uint64), shared_row(np.uint32), shared(0, np.uint64, (0, 3))
_secret, _generation, settings = (shared_field(name) for name in ("secret", "generation", "kernel_settings"))
_cursors, _active, _full = (shared_field(name) for name in ("cursors", "active", "full"))
_counted, _backends = (shared_field(name) for name in ("kernel_counted", "kernel_backends"))
(
    _seeds,
    _vips,
    _vip_index,
    _vip_listeners,
    _vip_bytes,
    _vip_rows,
    _vip_services,
    _listeners,
    _services,
    _affinities,
    _slots,
    _backend_services,
    _backend_vips,
    _backend_flags,
    _backend_weights,
    _backend_limits,
    _backend_bytes,
    _backend_ports,
    _addresses,
    _address_index,
    _address_members,
    _members,
) = (shared_field(f"even_{name}") for name in Snapshot._fields)


@compiled
def read(skb: int, packet: Bytes) -> int:
    """Copy the beginning of an IP packet for this machine, and return its length.

    0: it is none, or this core has no rows.
    """
    if _core() >= MAX_CORES:
        return 0
    protocol = context_word(skb, _PROTOCOL)
    if protocol not in (_IPV4, _IPV6) or context_word(skb, _VLAN_PRESENT) or context_word(skb, _PKT_TYPE):
        return 0
    length: int = context_word(skb, _LEN) - ETHERNET
    if length < _SHORTEST or load_bytes(skb, ETHERNET, packet, min(length, _WINDOW)) < 0:
        return 0
    return length


@compiled
def work_of() -> Work:
    """As a worker's, with the rows of this core."""
    core = _core()
    a = signed(_generation(0)[0] & _ONE) * _APART
    snapshot = Snapshot(
        _seeds(a),
        _vips(a),
        _vip_index(a),
        _vip_listeners(a),
        _vip_bytes(a),
        _vip_rows(a),
        _vip_services(a),
        _listeners(a),
        _services(a),
        _affinities(a),
        _slots(a),
        _backend_services(a),
        _backend_vips(a),
        _backend_flags(a),
        _backend_weights(a),
        _backend_limits(a),
        _backend_bytes(a),
        _backend_ports(a),
        _addresses(a),
        _address_index(a),
        _address_members(a),
        _members(a),
    )
    entries = settings(0)[KernelSetting.ENTRIES]
    words, deadlines_s = _words(_TABLE_AT, entries), _seconds(_TABLE_AT + 8 * entries, entries)
    return Work(
        snapshot,
        FlowTable(words, deadlines_s, _no_keys(0), _secret(0)),
        _cursors(0),
        _active(0),
        _full(0),
        0,
        0,
        _counted(0)[core],
        _counted(0)[core],
        _backends(0)[core],
        _counted(0)[core],
        signed(np.uint64(_ktime_coarse_ns()) // _BILLION),
    )


@compiled
def put(skb: int, packet: Bytes, header: Header, end: End, address: Bytes, port: int) -> bool:
    """Put an address and, where it has ports, a port at one end of a packet, with its checksums.

    False: nothing was changed.
    """
    packet = opaque(packet)
    port_at = end.port_at
    gain = change(packet, end.address_at, address)
    ports = header.kind == KIND_PORTS and read16(packet, port_at) != port
    ports_gain = change16(packet, port_at, port) if ports else 0
    if header.checksum and header.protocol != ICMP:
        zero = _MARK_MANGLED_0 if header.protocol == UDP else 0
        checksum_at = ETHERNET + header.checksum
        if _l4_csum_replace(skb, checksum_at, 0, _difference(gain), _PSEUDO_HDR | zero) < 0:
            return False
        if ports:
            _l4_csum_replace(skb, checksum_at, 0, _difference(ports_gain), zero)
    if ports:
        _store_bytes(skb, ETHERNET + port_at, packet[port_at : port_at + 2], 2, 0)
    if header.version == 4:
        adjust(packet, 10, gain)
        return _store_bytes(skb, ETHERNET + 10, packet[10:20], 10, 0) >= 0
    # The card's sum over the packet, where there is one, is changed by the address as by the checksum.
    return _store_bytes(skb, ETHERNET + 8, packet[8:40], 32, _RECOMPUTE_CSUM) >= 0


@compiled
def take_hop(skb: int, packet: Bytes, header: Header) -> None:
    """Take one hop from those that a packet may go."""
    packet = opaque(packet)
    if header.version == 4:
        adjust(packet, 10, change16(packet, 8, read16(packet, 8) - 0x100))
        _store_bytes(skb, ETHERNET + 8, packet[8:12], 4, 0)
    else:
        change16(packet, 6, read16(packet, 6) - 1)
        _store_bytes(skb, ETHERNET + 6, packet[6:8], 2, _RECOMPUTE_CSUM)


@compiled
def _difference(gain: int) -> int:
    """What a checksum gains, as the kernel adds it: folded, in the byte order of packets."""
    return swapped(fold(gain))


@compiled
def swapped(number: int) -> int:
    """16 bits in the other byte order."""
    return (number & 0xFF) << 8 | number >> 8
