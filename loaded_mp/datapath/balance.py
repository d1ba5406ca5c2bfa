"""What becomes of one packet: direction, flow, backend, rewriting. No I/O and no clock."""

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.affinity import client_flow, reply_flow
from loaded_mp.datapath.lookup import NO_PORT, Ends, address_row, ends_of, member_of, service_of, vip_row
from loaded_mp.datapath.messages import HOOK_PREROUTING, NF_ACCEPT, NF_DROP, NF_REPEAT, Decision, Queued
from loaded_mp.datapath.picks import pick
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.table import find, insert, replace, touch, value_of
from loaded_mp.memory.counters import BackendCounter, FlowTableCounter
from loaded_mp.memory.snapshot import MARK, MAX_BACKENDS, Answer, Ending, Flag, ServiceColumn
from loaded_mp.packet.address import address_length, destination_at, read_address, source_at
from loaded_mp.packet.header import KIND_ERROR, KIND_FRAGMENT, KIND_LINK, KIND_PORTS, TCP, UDP, Header, parse
from loaded_mp.packet.reasons import FATES, Fate, Reason
from loaded_mp.packet.reset import begins_connection, make_reset
from loaded_mp.packet.rewrite import (
    complete_checksum,
    set_destination,
    set_quoted_destination,
    set_quoted_source,
    set_source,
)

_ICMP_HEADER = 8
_IP_HEADERS = (20, 40)
#: Added to the VIP id in the value of a reply flow: not the id of a backend (MAX_BACKENDS is below it).
REPLY = 0x8000
#: How often a flow is looked up anew because another worker changed it at the same moment.
_TRIES = 16
#: In place of a backend id.
_NO_BACKEND, _LOST_RACE = -1, -2
_ONE = np.uint64(1)


@compiled
def decide(packet: Bytes, queued: Queued, work: Work) -> Decision:
    """Decide a packet and change it in place, flow table and counters included."""
    header = parse(packet, queued.start, queued.end, queued.cut)
    from_client = queued.hook == HOOK_PREROUTING
    reason, mark = header.reason, 0
    if reason == Reason.OK:
        if from_client:
            reason, mark = _to_backend(packet, header, work)
        else:
            reason = _to_client(packet, header, work)
    if reason != Reason.OK:
        fate = FATES[0 if from_client else 1, reason]
        passes = fate == Fate.PASS or (
            fate == Fate.PASS_UNLESS_FLOW and not _may_have_flow(packet, queued, header, work)
        )
        return Decision(NF_ACCEPT if passes else NF_DROP, False, 0, 0, reason)
    if mark:
        return Decision(NF_REPEAT, False, 0, mark, Reason.OK)
    if queued.cut:
        return Decision(NF_DROP, False, 0, 0, Reason.CUT)
    if work.ending != Ending.NOT and header.kind == KIND_PORTS and header.protocol == TCP:
        return Decision(NF_ACCEPT, True, make_reset(packet, header), 0, Reason.OK)
    if not queued.checksum_ready:
        if header.kind != KIND_PORTS:
            return Decision(NF_DROP, False, 0, 0, Reason.CHECKSUM_UNFINISHED)
        complete_checksum(packet, header)
    return Decision(NF_ACCEPT, True, queued.end, 0, Reason.OK)


@compiled
def _to_backend(packet: Bytes, header: Header, work: Work) -> tuple[Reason, int]:
    """Give a well-formed packet for a VIP to its backend; what became of it, and its mark or 0."""
    if header.kind == KIND_LINK:
        return Reason.LINK, 0
    snapshot = work.snapshot
    ends = ends_of(packet, header, True)
    vip = vip_row(snapshot, ends.server)
    if vip < 0:
        return Reason.NO_SERVICE, 0
    if work.ending != Ending.NOT and header.protocol == TCP and header.kind == KIND_PORTS:
        if begins_connection(packet, header):
            return Reason.ENDING, 0
        if work.ending == Ending.TELL_CLIENTS:
            return Reason.ENDED, 0
    if header.kind == KIND_ERROR:
        return _error_to_backend(packet, header, work, vip), 0
    service = service_of(snapshot, vip, ends.protocol, _port(header, ends))
    if service < 0:
        return Reason.NO_SERVICE, 0
    backend = _backend_for(work, service, client_flow(work, service, ends), ends.protocol)
    if backend < 0:
        return (Reason.NO_BACKEND if backend == _NO_BACKEND else Reason.LOST_RACE), 0
    if snapshot.services[service][ServiceColumn.ANSWER] == Answer.MARK:
        return Reason.OK, MARK + backend
    set_destination(packet, header, snapshot.backend_bytes[backend, : address_length(header.version)])
    if snapshot.backend_flags[backend] & Flag.SEVERAL:
        address = read_address(packet, destination_at(header.version, header.start), header.version)
        flow = reply_flow(work, address, ends)
        _remember_vip(
            work, flow, REPLY + snapshot.vip_listeners[vip, 2], _idle_s(work, service, ends.protocol)
        )
    _count_to_backend(work, backend, header)
    return Reason.OK, 0


@compiled
def _error_to_backend(packet: Bytes, header: Header, work: Work, vip: int) -> Reason:
    """An ICMP error about a packet VIP->client: to the backend that has this client."""
    snapshot = work.snapshot
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return Reason.BAD_QUOTE
    ends = ends_of(packet, quote, False)
    if vip_row(snapshot, ends.server) != vip:
        return Reason.NO_FLOW
    service = service_of(snapshot, vip, ends.protocol, _port(quote, ends))
    if service < 0:
        return Reason.NO_SERVICE
    entry, word = find(work.table, client_flow(work, service, ends))
    backend = value_of(word)
    if entry < 0 or not _serves(work, backend, service):
        return Reason.NO_FLOW
    address = snapshot.backend_bytes[backend, : address_length(header.version)]
    set_quoted_source(packet, header, quote, address)
    set_destination(packet, header, address)
    _count_to_backend(work, backend, header)
    return Reason.OK


@compiled
def _to_client(packet: Bytes, header: Header, work: Work) -> Reason:
    """Let a backend's reply come from the VIP; what became of it."""
    if header.kind == KIND_LINK:
        return Reason.LINK
    if header.kind == KIND_ERROR:
        return _error_to_client(packet, header, work)
    ends = ends_of(packet, header, False)
    backend, vip = _flow_of_reply(work, header, ends)
    if backend < 0:
        return Reason.NO_FLOW
    _renew(work, backend, ends)
    set_source(packet, header, work.snapshot.vip_bytes[vip, : address_length(header.version)])
    _count_to_client(work, backend, header)
    return Reason.OK


@compiled
def _error_to_client(packet: Bytes, header: Header, work: Work) -> Reason:
    """An ICMP error about a packet client->backend: make it quote the VIP.

    If the backend sent it, it comes from the VIP too; routers between balancer and backend, and the
    balancer itself, send such errors under their own address.
    """
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return Reason.BAD_QUOTE
    ends = ends_of(packet, quote, True)
    backend, vip = _flow_of_reply(work, quote, ends)
    if backend < 0:
        return Reason.NO_FLOW
    address = work.snapshot.vip_bytes[vip, : address_length(header.version)]
    set_quoted_destination(packet, header, quote, address)
    sender = read_address(packet, source_at(header.version, header.start), header.version)
    if sender.high == ends.server.high and sender.low == ends.server.low:
        set_source(packet, header, address)
    _count_to_client(work, backend, header)
    return Reason.OK


@compiled
def _backend_for(work: Work, service: int, flow: Flow, protocol: int) -> int:
    """The backend of a client's flow, entered or moved if need be; else _NO_BACKEND or _LOST_RACE."""
    row = work.snapshot.services[service]
    confirmed_s = first_s = _idle_s(work, service, protocol)
    # Of a connection that the kernel goes on with, no second packet is seen.
    if row[ServiceColumn.ANSWER] == Answer.REWRITE:
        first_s = min(confirmed_s, row[ServiceColumn.UNCONFIRMED_S])
    for _ in range(_TRIES):
        entry, word = find(work.table, flow)
        if entry >= 0:
            held = value_of(word)
            if _serves(work, held, service) and work.snapshot.backend_flags[held] & Flag.USABLE:
                if touch(work.table, entry, word, work.now_s, work.now_s + confirmed_s):
                    return held
                continue
        backend = pick(work, service, flow)
        if backend < 0:
            return _NO_BACKEND
        if entry >= 0:
            if replace(work.table, entry, word, backend):
                _count_flow(work, backend, held)
            continue
        held, evicted = insert(work.table, flow, backend, work.now_s + first_s)
        _count_evicted(work, evicted)
        if held == backend:
            _count_flow(work, backend, -1)
            return backend
    return _LOST_RACE


@compiled
def _renew(work: Work, backend: int, ends: Ends) -> None:
    """Let a client's flow live on, as its backend has answered."""
    service = work.snapshot.backend_services[backend]
    deadline_s = work.now_s + _idle_s(work, service, ends.protocol)
    entry, word = find(work.table, client_flow(work, service, ends))
    if entry >= 0:
        touch(work.table, entry, word, work.now_s, deadline_s)
    if work.snapshot.backend_flags[backend] & Flag.SEVERAL:
        entry, word = find(work.table, reply_flow(work, ends.server, ends))
        if entry >= 0:
            touch(work.table, entry, word, work.now_s, deadline_s)


@compiled
def _flow_of_reply(work: Work, header: Header, ends: Ends) -> tuple[int, int]:
    """Backend id and VIP id of the flow that a packet between client and backend belongs to, or (-1, -1)."""
    snapshot = work.snapshot
    row = address_row(snapshot, ends.server)
    if row < 0:
        return -1, -1
    first = snapshot.address_members[row, 0]
    port = _port(header, ends)
    if snapshot.backend_flags[snapshot.members[first]] & Flag.SEVERAL:
        entry, word = find(work.table, reply_flow(work, ends.server, ends))
        if entry >= 0:
            return _remembered(work, row, value_of(word) - REPLY, ends.protocol, port)
        if header.kind != KIND_FRAGMENT:
            return -1, -1
    for at in range(first, first + snapshot.address_members[row, 1]):
        backend = snapshot.members[at]
        service, vip = snapshot.backend_services[backend], snapshot.backend_vips[backend]
        if service_of(snapshot, snapshot.vip_rows[vip], ends.protocol, port) == service and _has_flow(
            work, backend, ends
        ):
            return backend, vip
    return -1, -1


@compiled
def _remembered(work: Work, row: int, vip: int, protocol: int, port: int) -> tuple[int, int]:
    """Backend id and VIP id of a flow whose VIP was remembered, unless they are gone."""
    snapshot = work.snapshot
    if vip < 0 or snapshot.vip_rows[vip] < 0:
        return -1, -1
    backend = member_of(snapshot, row, service_of(snapshot, snapshot.vip_rows[vip], protocol, port))
    return (backend, vip) if backend >= 0 else (-1, -1)


@compiled
def _remember_vip(work: Work, flow: Flow, value: int, idle_s: int) -> None:
    for _ in range(_TRIES):
        entry, word = find(work.table, flow)
        if entry < 0:
            _count_evicted(work, insert(work.table, flow, value, work.now_s + idle_s)[1])
        elif value_of(word) != value:
            replace(work.table, entry, word, value)
        elif touch(work.table, entry, word, work.now_s, work.now_s + idle_s):
            return


@compiled
def _may_have_flow(packet: Bytes, queued: Queued, header: Header, work: Work) -> bool:
    """Whether a packet that cannot be read is one of a backend to a client that it serves."""
    snapshot = work.snapshot
    version, start = header.version, queued.start
    if queued.end - start < _IP_HEADERS[0 if version == 4 else 1]:
        return False
    row = address_row(snapshot, read_address(packet, source_at(version, start), version))
    if row < 0:
        return False
    client = read_address(packet, destination_at(version, start), version)
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        if _has_flow(work, snapshot.members[at], Ends(0, client, 0, client, 0)):
            return True
    return False


@compiled
def _has_flow(work: Work, backend: int, ends: Ends) -> bool:
    """Whether a client's flow goes to a backend."""
    flow = client_flow(work, work.snapshot.backend_services[backend], ends)
    entry, word = find(work.table, flow)
    return entry >= 0 and value_of(word) == backend


@compiled
def _serves(work: Work, value: int, service: int) -> bool:
    """Whether a value from the flow table is a backend of a service.

    It may be that of a backend which was taken away or, as two flows may have one fingerprint, of a VIP.
    """
    return value < MAX_BACKENDS and work.snapshot.backend_services[value] == service


@compiled
def _port(header: Header, ends: Ends) -> int:
    """The port that listeners are asked for."""
    return NO_PORT if header.kind == KIND_FRAGMENT else ends.service_port


@compiled
def _idle_s(work: Work, service: int, protocol: int) -> int:
    column = ServiceColumn.OTHER_IDLE_S
    if protocol == TCP:
        column = ServiceColumn.TCP_IDLE_S
    elif protocol == UDP:
        column = ServiceColumn.UDP_IDLE_S
    idle_s: int = work.snapshot.services[service][column]
    return idle_s


@compiled
def _count_to_backend(work: Work, backend: int, header: Header) -> None:
    row = work.backends_counted[backend]
    row[BackendCounter.TO_BACKEND_PACKETS] += _ONE
    row[BackendCounter.TO_BACKEND_BYTES] += np.uint64(header.end - header.start)


@compiled
def _count_to_client(work: Work, backend: int, header: Header) -> None:
    row = work.backends_counted[backend]
    row[BackendCounter.TO_CLIENT_PACKETS] += _ONE
    row[BackendCounter.TO_CLIENT_BYTES] += np.uint64(header.end - header.start)


@compiled
def _count_flow(work: Work, backend: int, before: int) -> None:
    """Count a flow that a backend got, from the backend `before` unless that is no backend."""
    row = work.backends_counted[backend]
    row[BackendCounter.NEW_FLOWS] += _ONE
    work.active[work.worker, backend] += 1
    if 0 <= before < MAX_BACKENDS:
        work.active[work.worker, before] -= 1


@compiled
def _count_evicted(work: Work, value: int) -> None:
    """Count a flow with this value that gave way; none did if it is negative."""
    if value >= 0:
        work.table_counted[FlowTableCounter.EVICTIONS] += _ONE
        if value < MAX_BACKENDS:
            work.active[work.worker, value] -= 1
