"""Finding things: services of VIPs and backends of addresses in a snapshot, a flow's ends in a packet."""

from typing import NamedTuple

from loaded_mp.compiled import Bytes, compiled, goes_on
from loaded_mp.datapath.index import row_of
from loaded_mp.memory.marks import VIP, VIP_MASK
from loaded_mp.memory.snapshot import ListenerColumn, PortColumn, Snapshot
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
    return row_of(snapshot.vip_index, snapshot.seeds[0], snapshot.vips, address)


@compiled
def address_row(snapshot: Snapshot, address: Address128) -> int:
    """The row of `addresses` that holds a backend's address, or -1."""
    return row_of(snapshot.address_index, snapshot.seeds[1], snapshot.addresses, address)


@compiled
def service_of(snapshot: Snapshot, vip: int, protocol: int, port: int, mark: int) -> int:
    """The service id of a packet with this mark for (row) `vip`, or -1."""
    row = listener_of(snapshot, vip, protocol, port, mark)
    service: int = snapshot.listeners[row, ListenerColumn.SERVICE] if row >= 0 else -1
    return service


@compiled
def listener_of(snapshot: Snapshot, vip: int, protocol: int, port: int, mark: int) -> int:
    """The row of `listeners` for a packet for (row) `vip`, or -1. The first one that fits counts."""
    first, count = snapshot.vip_listeners[vip, 0], snapshot.vip_listeners[vip, 1]
    for row in range(first, first + count):
        if not goes_on():
            break
        listener = snapshot.listeners[row]
        if listener[ListenerColumn.PROTOCOL] not in (0, protocol) or listener[ListenerColumn.MARK] not in (
            0,
            mark,
        ):
            continue
        fits = listener[ListenerColumn.FIRST_PORT] <= port <= listener[ListenerColumn.LAST_PORT]
        if port == NO_PORT or fits:
            return row
    return -1


@compiled
def listens(snapshot: Snapshot, vip: int, protocol: int, port: int) -> bool:
    """Whether the service of a VIP id answers a protocol and port there, perhaps of packets with a mark."""
    row = snapshot.vip_rows[vip]
    first, count = snapshot.vip_listeners[row, 0], snapshot.vip_listeners[row, 1]
    for listener in range(first, first + count):
        if not goes_on():
            break
        columns = snapshot.listeners[listener]
        if columns[ListenerColumn.MARK] and columns[ListenerColumn.VIP] == vip:
            return True
    found = listener_of(snapshot, row, protocol, port, 0)
    return bool(found >= 0 and snapshot.listeners[found, ListenerColumn.VIP] == vip)


@compiled
def answers(snapshot: Snapshot, backend: int, header: Header, port: int) -> bool:
    """Whether a packet of (or for) this port of its address may be a backend's."""
    ports = snapshot.backend_ports[backend]
    return bool(header.kind != KIND_PORTS or ports[PortColumn.FIRST] <= port <= ports[PortColumn.LAST])


@compiled
def may_listen(snapshot: Snapshot, backend: int, header: Header, port: int) -> bool:
    """Whether a backend's service may listen to this port of its address; where not, it does not."""
    ports = snapshot.backend_ports[backend]
    return bool(header.kind != KIND_PORTS or ports[PortColumn.LOWEST] <= port <= ports[PortColumn.HIGHEST])


@compiled
def as_client_asks(snapshot: Snapshot, backend: int, header: Header, ends: Ends) -> Ends:
    """The ends of a backend's packet with the port that its client asks for."""
    if header.kind != KIND_PORTS:
        return ends
    return with_port(ends, ends.service_port - snapshot.backend_ports[backend, PortColumn.SHIFT])


@compiled
def with_port(ends: Ends, port: int) -> Ends:
    """The same ends with another port of the service."""
    return Ends(ends.protocol, ends.client, ends.client_port, ends.server, port)


@compiled
def port_asked(snapshot: Snapshot, vip: int, protocol: int, port: int) -> int:
    """The port that a client asks for where a backend that is gone answers from `port`, by VIP id.

    That is the same one or, if its service does not listen to that, the only one that it listens to.
    """
    row, only = snapshot.vip_rows[vip], port
    first = snapshot.vip_listeners[row, 0]
    for listener in snapshot.listeners[first : first + snapshot.vip_listeners[row, 1]]:
        if listener[ListenerColumn.VIP] == vip and listener[ListenerColumn.PROTOCOL] in (0, protocol):
            if listener[ListenerColumn.FIRST_PORT] <= port <= listener[ListenerColumn.LAST_PORT]:
                return port
            if listener[ListenerColumn.FIRST_PORT] == listener[ListenerColumn.LAST_PORT]:
                only = listener[ListenerColumn.FIRST_PORT]
    return only


@compiled
def vip_of(mark: int) -> int:
    """The VIP id by which a packet's connection came, as its mark says, or -1."""
    return mark & ~VIP_MASK if mark & VIP_MASK == VIP else -1
