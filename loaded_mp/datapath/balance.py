"""What becomes of one packet: direction, flow, backend, rewriting. No I/O and no clock."""

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.home import NO_BACKEND, backend_for, has_flow, home_of, renew
from loaded_mp.datapath.lookup import (
    NO_PORT,
    Ends,
    address_row,
    ends_of,
    member_of,
    service_of,
    vip_of,
    vip_row,
)
from loaded_mp.datapath.messages import NF_ACCEPT, NF_DROP, NF_REPEAT, Decision, Queued, from_client
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK, MISPLACED, REJECTED, VIP
from loaded_mp.memory.snapshot import Answer, Flag, ServiceColumn
from loaded_mp.packet.address import address_length, destination_at, read_address, source_at
from loaded_mp.packet.header import KIND_ERROR, KIND_FRAGMENT, KIND_LINK, KIND_PORTS, TCP, Header, parse
from loaded_mp.packet.reasons import FATES, Fate, Reason
from loaded_mp.packet.reset import Step, make_reset, refuses, says_something, step_of
from loaded_mp.packet.rewrite import (
    complete_checksum,
    set_destination,
    set_quoted_destination,
    set_quoted_source,
    set_source,
)

_ICMP_HEADER = 8
_IP_HEADERS = (20, 40)
_ONE = np.uint64(1)
_TELL_THE_OTHER = int(Flag.ENDING | Flag.RESET)
_REJECT = int(Flag.ENDED | Flag.RESET)
_STOPS = int(Flag.ENDING | Flag.ENDED)


@compiled
def decide(packet: Bytes, queued: Queued, work: Work) -> Decision:
    """Decide a packet and change it in place, flow table and counters included."""
    header = parse(packet, queued.start, queued.end, queued.cut)
    asks = from_client(queued)
    reason, backend, mark = header.reason, -1, 0
    if reason == Reason.OK:
        if asks:
            reason, backend, mark = _to_backend(packet, header, queued.mark, work)
        else:
            reason, backend = _to_client(packet, header, queued.mark, work)
    if reason == Reason.TOLD and not queued.cut:
        return Decision(NF_ACCEPT, True, make_reset(packet, header, queued.several), 0, reason)
    if reason != Reason.OK:
        fate = FATES[0 if asks else 1, reason]
        if fate == Fate.REJECT:
            return Decision(NF_ACCEPT, False, 0, REJECTED, reason)
        passes = fate == Fate.PASS or (
            fate == Fate.PASS_UNLESS_FLOW and not _may_have_flow(packet, queued, header, work)
        )
        return Decision(NF_ACCEPT if passes else NF_DROP, False, 0, 0, reason)
    if mark & BACKEND_MASK == BACKEND:
        return Decision(NF_REPEAT, False, 0, mark, Reason.OK)
    if queued.cut:
        return Decision(NF_DROP, False, 0, 0, Reason.CUT)
    if _is_tcp(header) and _is_turned(packet, header, asks, work.snapshot.backend_flags[backend]):
        return Decision(NF_ACCEPT, True, make_reset(packet, header, queued.several), mark, Reason.OK)
    if not queued.checksum_ready:
        if header.kind != KIND_PORTS:
            return Decision(NF_DROP, False, 0, 0, Reason.CHECKSUM_UNFINISHED)
        complete_checksum(packet, header)
    return Decision(NF_ACCEPT, True, queued.end, mark, Reason.OK)


@compiled
def _to_backend(packet: Bytes, header: Header, before: int, work: Work) -> tuple[Reason, int, int]:
    """Give a well-formed packet for a VIP to its backend: what became of it, backend id, its mark.

    `before` is the mark with which it came.
    """
    if header.kind == KIND_LINK:
        return Reason.LINK, -1, 0
    snapshot = work.snapshot
    ends = ends_of(packet, header, True)
    if before == MISPLACED and address_row(snapshot, ends.client) >= 0:
        return Reason.MISPLACED, -1, 0
    vip = vip_row(snapshot, ends.server)
    if vip < 0:
        return Reason.NO_SERVICE, -1, 0
    mark = VIP + snapshot.vip_listeners[vip, 2]
    if header.kind == KIND_ERROR:
        reason, backend = _error_to_backend(packet, header, work, vip)
        return reason, backend, mark
    service = service_of(snapshot, vip, ends.protocol, _port(header, ends))
    if service < 0:
        return Reason.NO_SERVICE, -1, 0
    step = step_of(packet, header) if _is_tcp(header) else Step.GOES_ON
    backend = backend_for(work, service, ends, step)
    if backend == NO_BACKEND and snapshot.services[service][ServiceColumn.REJECTS]:
        return Reason.REJECTED, -1, 0
    if backend < 0:
        return (Reason.NO_BACKEND if backend == NO_BACKEND else Reason.LOST_RACE), -1, 0
    if snapshot.backend_flags[backend] & Flag.HELD and step != Step.BEGINS:
        return Reason.HELD, -1, 0
    stops = snapshot.backend_flags[backend] if _is_tcp(header) else 0
    if step == Step.BEGINS and stops & _STOPS:
        return Reason.ENDING, -1, 0
    if stops & _REJECT and step != Step.BREAKS:
        return Reason.ENDED, -1, 0
    if snapshot.services[service][ServiceColumn.ANSWER] == Answer.MARK and not stops & Flag.ENDING:
        return Reason.OK, backend, BACKEND + backend
    set_destination(packet, header, snapshot.backend_bytes[backend, : address_length(header.version)])
    _count_to_backend(work, backend, header)
    work.backends_counted[backend][BackendCounter.CONNECTIONS] += np.uint64(step == Step.BEGINS)
    return Reason.OK, backend, mark


@compiled
def _error_to_backend(packet: Bytes, header: Header, work: Work, vip: int) -> tuple[Reason, int]:
    """An ICMP error about a packet VIP->client: to the backend that has this client."""
    snapshot = work.snapshot
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return Reason.BAD_QUOTE, -1
    ends = ends_of(packet, quote, False)
    if vip_row(snapshot, ends.server) != vip:
        return Reason.NO_FLOW, -1
    service = service_of(snapshot, vip, ends.protocol, _port(quote, ends))
    if service < 0:
        return Reason.NO_SERVICE, -1
    backend = home_of(work, service, ends)
    if backend < 0:
        return Reason.NO_FLOW, -1
    address = snapshot.backend_bytes[backend, : address_length(header.version)]
    set_quoted_source(packet, header, quote, address)
    set_destination(packet, header, address)
    _count_to_backend(work, backend, header)
    return Reason.OK, backend


@compiled
def _to_client(packet: Bytes, header: Header, mark: int, work: Work) -> tuple[Reason, int]:
    """Let a backend's reply come from the VIP: what became of it, and the backend's id."""
    if header.kind == KIND_LINK:
        return Reason.LINK, -1
    if header.kind == KIND_ERROR:
        return _error_to_client(packet, header, mark, work)
    ends = ends_of(packet, header, False)
    reason, backend, vip = _connection_of(work, header, ends, mark)
    if reason == Reason.GONE and vip >= 0 and _is_tcp(header):
        set_source(packet, header, work.snapshot.vip_bytes[vip, : address_length(header.version)])
        return Reason.TOLD, -1
    if reason != Reason.OK:
        return reason, -1
    if work.snapshot.backend_flags[backend] & Flag.HELD:
        return Reason.HELD, -1
    step = step_of(packet, header) if _is_tcp(header) else Step.GOES_ON
    renew(work, backend, ends, step)
    counted = work.backends_counted[backend]
    if step == Step.BREAKS:
        counted[BackendCounter.REFUSALS if refuses(packet, header) else BackendCounter.RESETS] += _ONE
    elif not _is_tcp(header) or says_something(packet, header):
        counted[BackendCounter.WORDS] += _ONE
    set_source(packet, header, work.snapshot.vip_bytes[vip, : address_length(header.version)])
    _count_to_client(work, backend, header)
    return Reason.OK, backend


@compiled
def _error_to_client(packet: Bytes, header: Header, mark: int, work: Work) -> tuple[Reason, int]:
    """An ICMP error about a packet client->backend: make it quote the VIP.

    If the backend sent it, it comes from the VIP too; routers between balancer and backend, and the
    balancer itself, send such errors under their own address.
    """
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return Reason.BAD_QUOTE, -1
    ends = ends_of(packet, quote, True)
    reason, backend, vip = _connection_of(work, quote, ends, mark)
    if reason != Reason.OK:
        return reason, -1
    address = work.snapshot.vip_bytes[vip, : address_length(header.version)]
    set_quoted_destination(packet, header, quote, address)
    sender = read_address(packet, source_at(header.version, header.start), header.version)
    if sender.high == ends.server.high and sender.low == ends.server.low:
        set_source(packet, header, address)
    _count_to_client(work, backend, header)
    work.backends_counted[backend][BackendCounter.ERRORS] += _ONE
    return Reason.OK, backend


@compiled
def _connection_of(work: Work, header: Header, ends: Ends, mark: int) -> tuple[Reason, int, int]:
    """Backend id and VIP id of the connection between client and backend that a packet belongs to, or -1.

    Its mark says by which VIP it came, and that it came by one. `header` is that of the packet, or of the one
    that an ICMP error quotes.
    """
    snapshot = work.snapshot
    vip, row = vip_of(mark), address_row(snapshot, ends.server)
    if vip < 0:
        return _unmarked(work, row, header, ends)
    service = -1
    if snapshot.vip_rows[vip] >= 0:
        service = service_of(snapshot, snapshot.vip_rows[vip], ends.protocol, _port(header, ends))
    else:
        vip = -1
    backend = member_of(snapshot, row, service) if row >= 0 and service >= 0 else -1
    if backend >= 0:
        return Reason.OK, backend, vip
    # A client may go on with the same ports without the VIP: then this is its own packet.
    to_backend = row < 0 and address_row(snapshot, ends.client) >= 0
    return (Reason.NO_FLOW if to_backend else Reason.GONE), -1, vip


@compiled
def _unmarked(work: Work, row: int, header: Header, ends: Ends) -> tuple[Reason, int, int]:
    """As `_connection_of`, for a packet that conntrack knows nothing of: by the client's flow."""
    snapshot = work.snapshot
    if row < 0:
        return Reason.NO_FLOW, -1, -1
    port = _port(header, ends)
    found, found_vip = -1, -1
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        backend = snapshot.members[at]
        service, vip = snapshot.backend_services[backend], snapshot.backend_vips[backend]
        listens = service_of(snapshot, snapshot.vip_rows[vip], ends.protocol, port) == service
        if listens and has_flow(work, backend, ends):
            # The kernel would take it for a new connection, and could not translate the client's then.
            marks = snapshot.services[service][ServiceColumn.ANSWER] == Answer.MARK
            if snapshot.backend_flags[backend] & Flag.HELD:
                return Reason.HELD, -1, -1
            told = snapshot.backend_flags[backend] & _TELL_THE_OTHER
            if (marks and not told) or found >= 0 or snapshot.backend_flags[backend] & Flag.SEVERAL:
                return Reason.UNMARKED, -1, -1
            found, found_vip = backend, vip
    return (Reason.OK if found >= 0 else Reason.NO_FLOW), found, found_vip


@compiled
def _may_have_flow(packet: Bytes, queued: Queued, header: Header, work: Work) -> bool:
    """Whether a packet that cannot be read is one of a backend to a client that it serves."""
    if vip_of(queued.mark) >= 0:
        return True
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
        if has_flow(work, snapshot.members[at], Ends(0, client, 0, client, 0)):
            return True
    return False


@compiled
def _is_turned(packet: Bytes, header: Header, asks: bool, flags: int) -> bool:
    """Whether a TCP segment becomes a reset for the end that it goes to; `flags` are its backend's.

    What only acknowledges is not turned: else the end that speaks would be told, and the one that listens
    never. Whose words were lost says them again, and the end that was told answers itself then, by a reset.
    """
    if flags & Flag.ENDED and not asks:
        return False
    return bool(flags & _TELL_THE_OTHER) and says_something(packet, header)


@compiled
def _is_tcp(header: Header) -> bool:
    """Whether a packet has a TCP header."""
    return header.kind == KIND_PORTS and header.protocol == TCP


@compiled
def _port(header: Header, ends: Ends) -> int:
    """The port that listeners are asked for."""
    return NO_PORT if header.kind == KIND_FRAGMENT else ends.service_port


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
