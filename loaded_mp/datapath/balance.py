"""What becomes of one packet: direction, flow, backend, rewriting. No I/O and no clock."""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.lookup import NO_PORT, host_row, member_of, ports, read_address, service_of, vip_row
from loaded_mp.flows.atomics import Words, add
from loaded_mp.flows.siphash import siphash
from loaded_mp.flows.table import FlowTable, find, flow_hash, insert, replace, touch, value_of
from loaded_mp.memory.shared import NEW_FLOWS, TO_BACKEND_PACKETS, TO_CLIENT_PACKETS
from loaded_mp.memory.snapshot import (
    MARK,
    MAX_BACKENDS,
    SERVICE_BY_CONNTRACK,
    SERVICE_OTHER_IDLE_S,
    SERVICE_SLOTS,
    SERVICE_SLOTS_AT,
    SERVICE_TCP_IDLE_S,
    SERVICE_UDP_IDLE_S,
    SHARED,
    USABLE,
    Snapshot,
)
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.header import (
    KIND_ERROR,
    KIND_FRAGMENT,
    KIND_LINK,
    KIND_PORTS,
    KIND_QUERY,
    TCP,
    UDP,
    Header,
    parse,
)
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.rewrite import (
    address_length,
    destination_at,
    set_destination,
    set_quoted_destination,
    set_quoted_source,
    set_source,
    source_at,
)

_OK = int(Reason.OK)
_BAD_QUOTE = int(Reason.BAD_QUOTE)
_NO_SERVICE = int(Reason.NO_SERVICE)
_NO_BACKEND = int(Reason.NO_BACKEND)
_NO_FLOW = int(Reason.NO_FLOW)
_LINK = int(Reason.LINK)

_ICMP_HEADER = 8
#: Added to the VIP id in the value of a reply flow: not the id of a backend (MAX_BACKENDS is below it).
REPLY = 0x8000
#: How often a flow is looked up anew because another worker changed it at the same moment.
_TRIES = 16


class Shared(NamedTuple):
    """What one worker works on besides the snapshot: the flow table and its own counters."""

    table: FlowTable
    cursors: Words  #: uint64[MAX_SERVICES], the next slot of each service, shared by all workers
    traffic: Words  #: uint64[MAX_BACKENDS, 5], this worker's, see TO_BACKEND_PACKETS...
    evictions: Words  #: uint64[1], this worker's: flows that gave way to others


@compiled
def _pick(snapshot: Snapshot, cursors: Words, service: int) -> int:
    """The next backend of a service, exact over all workers; -1 if it has no slot."""
    slots = int(np.int64(snapshot.services[service, SERVICE_SLOTS]))
    if slots == 0:
        return -1
    turn = int(np.int64(add(cursors, service, np.uint64(1)) % np.uint64(slots)))
    return int(np.int64(snapshot.slots[snapshot.services[service, SERVICE_SLOTS_AT] + turn]))


@compiled
def _idle_s(snapshot: Snapshot, service: int, protocol: int) -> int:
    column = SERVICE_OTHER_IDLE_S
    if protocol == TCP:
        column = SERVICE_TCP_IDLE_S
    elif protocol == UDP:
        column = SERVICE_UDP_IDLE_S
    return int(np.int64(snapshot.services[service, column]))


@compiled
def _serves(snapshot: Snapshot, backend: int, service: int) -> bool:
    """Whether a value from the flow table is a backend of a service.

    It may be that of a backend which was taken away or, as two flows may have one fingerprint, of a VIP.
    """
    return backend < MAX_BACKENDS and bool(snapshot.backend_services[backend] == service)


@compiled
def _backend_for(
    snapshot: Snapshot, shared: Shared, service: int, high: np.uint64, low: np.uint64, now_s: int, idle_s: int
) -> int:
    """The backend of a client's flow, entered or moved if need be; -1 if the service has none."""
    flow = flow_hash(shared.table, service, high, low)
    for _ in range(_TRIES):
        entry, word = find(shared.table, flow)
        if entry >= 0:
            backend = value_of(word)
            if _serves(snapshot, backend, service) and snapshot.backend_flags[backend] & USABLE:
                if touch(shared.table, entry, word, now_s, now_s + idle_s):
                    return backend
                continue
        backend = _pick(snapshot, shared.cursors, service)
        if backend < 0:
            return -1
        if entry >= 0:
            if replace(shared.table, entry, word, backend):
                shared.traffic[backend, NEW_FLOWS] += np.uint64(1)
            continue
        held, evicted = insert(shared.table, flow, backend, now_s + idle_s, high, low)
        if evicted:
            shared.evictions[0] += np.uint64(1)
        if held == backend:
            shared.traffic[backend, NEW_FLOWS] += np.uint64(1)
            return backend
    return -1


@compiled
def _reply_flow(
    table: FlowTable,
    protocol: int,
    client_port: int,
    service_port: int,
    client: tuple[np.uint64, np.uint64],
    backend: tuple[np.uint64, np.uint64],
) -> np.uint64:
    """The flow that remembers the VIP of a connection to a shared backend."""
    scope = (1 << 62) | protocol << 40 | client_port << 16 | service_port
    return siphash(
        table.secret,
        siphash(table.secret, np.uint64(scope), backend[0], backend[1]),
        client[0],
        client[1],
    )


@compiled
def _remember_vip(
    shared: Shared,
    flow: np.uint64,
    vip: int,
    client: tuple[np.uint64, np.uint64],
    now_s: int,
    idle_s: int,
) -> None:
    for _ in range(_TRIES):
        entry, word = find(shared.table, flow)
        if entry < 0:
            insert(shared.table, flow, vip, now_s + idle_s, client[0], client[1])
        elif value_of(word) != vip:
            replace(shared.table, entry, word, vip)
        elif touch(shared.table, entry, word, now_s, now_s + idle_s):
            return


@compiled
def _numbers(packet: Bytes, header: Header) -> tuple[int, int]:
    """What tells connections apart: source and destination port, or an echo's identifier as both."""
    if header.kind == KIND_PORTS:
        return ports(packet, header.upper)
    if header.kind == KIND_QUERY:
        identifier = read16(packet, header.upper + 4)
        return identifier, identifier
    return 0, 0


@compiled
def _count(shared: Shared, backend: int, packets_column: int, length: int) -> None:
    shared.traffic[backend, packets_column] += np.uint64(1)
    shared.traffic[backend, packets_column + 1] += np.uint64(length)


@compiled
def to_backend(
    packet: Bytes, start: int, header: Header, snapshot: Snapshot, shared: Shared, now_s: int
) -> tuple[int, int]:
    """Give a well-formed packet for a VIP to its backend; what became of it as a Reason, and its mark.

    The packet of a service that the kernel forwards gets a mark and stays as it is; the others get 0.
    """
    version = header.version
    if header.kind == KIND_LINK:
        return _LINK, 0
    high, low = read_address(packet, destination_at(version, start), version)
    vip = vip_row(snapshot, high, low)
    if vip < 0:
        return _NO_SERVICE, 0
    if header.kind == KIND_ERROR:
        return _error_to_backend(packet, start, header, snapshot, shared, vip), 0
    source_port, destination_port = _numbers(packet, header)
    port = NO_PORT if header.kind == KIND_FRAGMENT else destination_port
    service = service_of(snapshot, vip, header.protocol, port)
    if service < 0:
        return _NO_SERVICE, 0
    client = read_address(packet, source_at(version, start), version)
    idle_s = _idle_s(snapshot, service, header.protocol)
    backend = _backend_for(snapshot, shared, service, client[0], client[1], now_s, idle_s)
    if backend < 0:
        return _NO_BACKEND, 0
    if snapshot.services[service, SERVICE_BY_CONNTRACK]:
        return _OK, MARK + backend
    address = snapshot.backend_bytes[backend, : address_length(version)]
    set_destination(packet, header, start, address)
    if snapshot.backend_flags[backend] & SHARED:
        host = read_address(packet, destination_at(version, start), version)
        flow = _reply_flow(shared.table, header.protocol, source_port, destination_port, client, host)
        vip_id = int(np.int64(snapshot.vip_listeners[vip, 2]))
        _remember_vip(shared, flow, REPLY + vip_id, client, now_s, idle_s)
    _count(shared, backend, TO_BACKEND_PACKETS, header.end - start)
    return _OK, 0


@compiled
def _error_to_backend(
    packet: Bytes, start: int, header: Header, snapshot: Snapshot, shared: Shared, vip: int
) -> int:
    """An ICMP error about a packet VIP->client: to the backend that has this client."""
    version = header.version
    at = header.upper + _ICMP_HEADER
    quote = parse(packet, at, header.end, True)
    if quote.reason != _OK or quote.version != version:
        return _BAD_QUOTE
    high, low = read_address(packet, source_at(version, at), version)
    if vip_row(snapshot, high, low) != vip:
        return _NO_FLOW
    port = _numbers(packet, quote)[0] if quote.kind != KIND_FRAGMENT else NO_PORT
    service = service_of(snapshot, vip, quote.protocol, port)
    if service < 0:
        return _NO_SERVICE
    client = read_address(packet, destination_at(version, at), version)
    entry, word = find(shared.table, flow_hash(shared.table, service, client[0], client[1]))
    backend = value_of(word)
    if entry < 0 or not _serves(snapshot, backend, service):
        return _NO_FLOW
    address = snapshot.backend_bytes[backend, : address_length(version)]
    set_quoted_source(packet, header, quote, at, address)
    set_destination(packet, header, start, address)
    _count(shared, backend, TO_BACKEND_PACKETS, header.end - start)
    return _OK


@compiled
def _flow_of_reply(
    packet: Bytes,
    header: Header,
    snapshot: Snapshot,
    shared: Shared,
    host: int,
    client: tuple[np.uint64, np.uint64],
    client_port: int,
    service_port: int,
) -> tuple[int, int]:
    """Backend id and VIP id of the flow client<->host that a packet belongs to, or (-1, -1)."""
    first = int(np.int64(snapshot.host_backends[host, 0]))
    port = NO_PORT if header.kind == KIND_FRAGMENT else service_port
    if snapshot.backend_flags[snapshot.members[first]] & SHARED:
        address = snapshot.hosts[host, 0], snapshot.hosts[host, 1]
        flow = _reply_flow(shared.table, header.protocol, client_port, service_port, client, address)
        entry, word = find(shared.table, flow)
        if entry >= 0:
            vip = value_of(word) - REPLY
            if vip < 0:
                return -1, -1
            row = int(np.int64(snapshot.vip_rows[vip]))
            service = service_of(snapshot, row, header.protocol, port) if row >= 0 else -1
            backend = member_of(snapshot, host, service)
            if backend >= 0:
                return backend, vip
            return -1, -1
        if header.kind != KIND_FRAGMENT:
            return -1, -1
    for row in range(first, first + int(np.int64(snapshot.host_backends[host, 1]))):
        backend = int(np.int64(snapshot.members[row]))
        service = int(np.int64(snapshot.backend_services[backend]))
        vip = int(np.int64(snapshot.backend_vips[backend]))
        if service_of(snapshot, int(np.int64(snapshot.vip_rows[vip])), header.protocol, port) != service:
            continue
        entry, word = find(shared.table, flow_hash(shared.table, service, client[0], client[1]))
        if entry >= 0 and value_of(word) == backend:
            return backend, vip
    return -1, -1


@compiled
def to_client(packet: Bytes, start: int, header: Header, snapshot: Snapshot, shared: Shared) -> int:
    """Let a backend's reply come from the VIP; what became of it as a Reason."""
    version = header.version
    if header.kind == KIND_LINK:
        return _LINK
    if header.kind == KIND_ERROR:
        return _error_to_client(packet, start, header, snapshot, shared)
    high, low = read_address(packet, source_at(version, start), version)
    host = host_row(snapshot, high, low)
    if host < 0:
        return _NO_FLOW
    service_port, client_port = _numbers(packet, header)
    client = read_address(packet, destination_at(version, start), version)
    backend, vip = _flow_of_reply(packet, header, snapshot, shared, host, client, client_port, service_port)
    if backend < 0:
        return _NO_FLOW
    set_source(packet, header, start, snapshot.vip_bytes[vip, : address_length(version)])
    _count(shared, backend, TO_CLIENT_PACKETS, header.end - start)
    return _OK


@compiled
def _error_to_client(packet: Bytes, start: int, header: Header, snapshot: Snapshot, shared: Shared) -> int:
    """An ICMP error about a packet client->backend: make it quote the VIP.

    If the backend sent it, it comes from the VIP too; routers between balancer and backend, and the
    balancer itself, send such errors under their own address.
    """
    version = header.version
    at = header.upper + _ICMP_HEADER
    quote = parse(packet, at, header.end, True)
    if quote.reason != _OK or quote.version != version:
        return _BAD_QUOTE
    high, low = read_address(packet, destination_at(version, at), version)
    host = host_row(snapshot, high, low)
    if host < 0:
        return _NO_FLOW
    client_port, service_port = _numbers(packet, quote)
    client = read_address(packet, source_at(version, at), version)
    backend, vip = _flow_of_reply(packet, quote, snapshot, shared, host, client, client_port, service_port)
    if backend < 0:
        return _NO_FLOW
    address = snapshot.vip_bytes[vip, : address_length(version)]
    set_quoted_destination(packet, header, quote, at, address)
    sender_high, sender_low = read_address(packet, source_at(version, start), version)
    if sender_high == high and sender_low == low:
        set_source(packet, header, start, address)
    _count(shared, backend, TO_CLIENT_PACKETS, header.end - start)
    return _OK
