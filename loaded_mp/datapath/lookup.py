"""Finding things: services of VIPs and backends of addresses in a snapshot, a flow's ends in a packet."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.memory.marks import VIP, VIP_MASK
from loaded_mp.memory.snapshot import ListenerColumn, Snapshot
from loaded_mp.packet.address import Address128, destination_at, read_address, source_at
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.header import KIND_PORTS, KIND_QUERY, Header

#: Stands for "the packet has no port": matches the listeners of any port.
NO_PORT = -1


class Ends(NamedTuple):
    """Both ends of what a packet belongs to, whichever way the packet goes."""

    protocol: int
    client: Address128
    client_port: int  #: 0 where the protocol has none; an echo's identifier stands for both ports
    server: Address128  #: the VIP or the backend
    service_port: int


@compiled
def ends_of(packet: Bytes, header: Header, from_client: bool) -> Ends:
    """The ends of a packet that a client sends (`from_client`) or gets."""
    source = read_address(packet, source_at(header.version, header.start), header.version)
    destination = read_address(packet, destination_at(header.version, header.start), header.version)
    source_port = destination_port = 0
    if header.kind == KIND_PORTS:  # RFC 9293, 3.1; RFC 768
        source_port, destination_port = read16(packet, header.upper), read16(packet, header.upper + 2)
    elif header.kind == KIND_QUERY:
        source_port = destination_port = read16(packet, header.upper + 4)
    if from_client:
        return Ends(header.protocol, source, source_port, destination, destination_port)
    return Ends(header.protocol, destination, destination_port, source, source_port)


@compiled
def vip_row(snapshot: Snapshot, address: Address128) -> int:
    """The row of `vips` that holds an address, or -1."""
    return _row_of(snapshot.vips, snapshot.sizes[0], address)


@compiled
def address_row(snapshot: Snapshot, address: Address128) -> int:
    """The row of `addresses` that holds a backend's address, or -1."""
    return _row_of(snapshot.addresses, snapshot.sizes[1], address)


@compiled
def _row_of(addresses: npt.NDArray[np.uint64], rows: int, address: Address128) -> int:
    """The row of an address among the first `rows` of uint64[n, 2], which ascend; -1 if it is not there."""
    first, last = 0, rows - 1
    while first <= last:
        middle = (first + last) // 2
        high, low = addresses[middle, 0], addresses[middle, 1]
        if high == address.high and low == address.low:
            return middle
        if high < address.high or (high == address.high and low < address.low):
            first = middle + 1
        else:
            last = middle - 1
    return -1


@compiled
def service_of(snapshot: Snapshot, vip: int, protocol: int, port: int) -> int:
    """The service id of a packet for (row) `vip`, or -1. The first listener that fits counts."""
    first = snapshot.vip_listeners[vip, 0]
    for row in range(first, first + snapshot.vip_listeners[vip, 1]):
        listener = snapshot.listeners[row]
        if listener[ListenerColumn.PROTOCOL] not in (0, protocol):
            continue
        fits = listener[ListenerColumn.FIRST_PORT] <= port <= listener[ListenerColumn.LAST_PORT]
        if port == NO_PORT or fits:
            service: int = listener[ListenerColumn.SERVICE]
            return service
    return -1


@compiled
def member_of(snapshot: Snapshot, row: int, service: int) -> int:
    """The backend id that the address in (row) `row` has in a service, or -1."""
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        backend: int = snapshot.members[at]
        if snapshot.backend_services[backend] == service:
            return backend
    return -1


@compiled
def vip_of(mark: int) -> int:
    """The id of the VIP by which a packet's connection came, as its mark says, or -1."""
    return mark & ~VIP_MASK if mark & VIP_MASK == VIP else -1
