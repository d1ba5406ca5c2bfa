"""What becomes of one packet: direction, flow, backend, rewriting. No I/O and no clock."""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.counting import count_begun, count_to_backend, count_to_client, count_words
from loaded_mp.datapath.home import LOST_RACE, backend_for, has_flow, home_of, renew
from loaded_mp.datapath.lookup import (
    NO_PORT,
    Ends,
    address_row,
    answers,
    as_client_asks,
    ends_of,
    listener_of,
    listens,
    port_asked,
    service_of,
    vip_of,
    vip_row,
    with_port,
)
from loaded_mp.datapath.messages import NF_ACCEPT, NF_DROP, NF_REPEAT, Decision, Queued, from_client
from loaded_mp.datapath.picks import NO_BACKEND
from loaded_mp.datapath.tunnels import fits_into_tunnel, put_into_tunnel, tell_by_tunnel
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK, MISPLACED, REJECTED, TUNNEL, VIP
from loaded_mp.memory.snapshot import Answer, Flag, ListenerColumn, PortColumn, ServiceColumn, Snapshot
from loaded_mp.packet.address import address_length, destination_at, read_address, source_at
from loaded_mp.packet.header import KIND_ERROR, KIND_FRAGMENT, KIND_LINK, KIND_PORTS, SCTP, TCP, Header, parse
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
    if queued.mark == TUNNEL and reason == Reason.OK and header.kind == KIND_ERROR and not queued.cut:
        end = tell_by_tunnel(packet, header, work)
        reason = Reason.OK if end else Reason.NO_FLOW
        return Decision(NF_ACCEPT, end > 0, end, 0, reason)
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
    marked, carried = mark & BACKEND_MASK == BACKEND, mark == TUNNEL
    if not marked and (queued.cut or (carried and not fits_into_tunnel(header, backend, work))):
        return Decision(NF_DROP, False, 0, 0, Reason.CUT)
    if carried and queued.several:
        return Decision(NF_DROP, False, 0, 0, Reason.UNCUT)
    turned = _is_tcp(header) and _is_turned(packet, header, asks, work.snapshot.backend_flags[backend])
    end = header.end if carried else queued.end
    if turned and not queued.cut:
        end = make_reset(packet, header, queued.several)
    elif marked:
        return Decision(NF_REPEAT, False, 0, mark, Reason.OK)
    elif not queued.checksum_ready:
        if header.kind != KIND_PORTS or (header.protocol == SCTP and queued.several):
            return Decision(NF_DROP, False, 0, 0, Reason.CHECKSUM_UNFINISHED)
        complete_checksum(packet, header)
    if carried:
        end = put_into_tunnel(packet, header, end, backend, work)
    return Decision(NF_REPEAT if marked or carried else NF_ACCEPT, True, end, mark, Reason.OK)


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
    if header.kind == KIND_ERROR:
        return _error_to_backend(packet, header, before, work, vip)
    listener = listener_of(snapshot, vip, ends.protocol, _port(header, ends), before)
    if listener < 0:
        return Reason.NO_SERVICE, -1, 0
    service = snapshot.listeners[listener, ListenerColumn.SERVICE]
    step = step_of(packet, header) if _is_tcp(header) else Step.GOES_ON
    backend = backend_for(work, service, ends, step)
    if backend == LOST_RACE:
        return Reason.LOST_RACE, -1, 0
    if backend < 0 and snapshot.services[service][ServiceColumn.REJECTS]:
        return Reason.REJECTED, -1, 0
    if backend < 0:
        return (Reason.NO_BACKEND if backend == NO_BACKEND else Reason.FULL), -1, 0
    if snapshot.backend_flags[backend] & Flag.HELD and step != Step.BEGINS:
        return Reason.HELD, -1, 0
    stops = snapshot.backend_flags[backend] if _is_tcp(header) else 0
    if step == Step.BEGINS and stops & _STOPS:
        return Reason.ENDING, -1, 0
    if stops & _REJECT and step != Step.BREAKS:
        return Reason.ENDED, -1, 0
    if snapshot.services[service][ServiceColumn.ANSWER] == Answer.MARK and not stops & Flag.ENDING:
        return Reason.OK, backend, BACKEND + backend
    mark = _unchanged(snapshot, service, backend)
    if not mark:
        address = snapshot.backend_bytes[backend, : address_length(header.version)]
        set_destination(packet, header, address, _backend_port(work, backend, ends))
        mark = VIP + snapshot.listeners[listener, ListenerColumn.VIP]
    count_to_backend(work, backend, header)
    count_begun(work, backend, step)
    return Reason.OK, backend, mark


@compiled
def _error_to_backend(
    packet: Bytes, header: Header, before: int, work: Work, vip: int
) -> tuple[Reason, int, int]:
    """An ICMP error about a packet VIP->client: to the backend that has this client. As `_to_backend`."""
    snapshot = work.snapshot
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return Reason.BAD_QUOTE, -1, 0
    ends = ends_of(packet, quote, False)
    if vip_row(snapshot, ends.server) != vip:
        return Reason.NO_FLOW, -1, 0
    listener = listener_of(snapshot, vip, ends.protocol, _port(quote, ends), before)
    backend = (
        home_of(work, snapshot.listeners[listener, ListenerColumn.SERVICE], ends) if listener >= 0 else -1
    )
    # It need not have the mark of what it is about.
    first = snapshot.vip_listeners[vip, 0]
    for marked in range(first, first + snapshot.vip_listeners[vip, 1]):
        if backend < 0 and snapshot.listeners[marked, ListenerColumn.MARK]:
            listener = marked
            backend = home_of(work, snapshot.listeners[marked, ListenerColumn.SERVICE], ends)
    if backend < 0:
        return (Reason.NO_FLOW if listener >= 0 else Reason.NO_SERVICE), -1, 0
    count_to_backend(work, backend, header)
    mark = _unchanged(snapshot, snapshot.listeners[listener, ListenerColumn.SERVICE], backend)
    if mark:
        return Reason.OK, backend, mark
    address = snapshot.backend_bytes[backend, : address_length(header.version)]
    port = _backend_port(work, backend, ends)
    set_quoted_source(packet, header, quote, address, port)
    set_destination(packet, header, address, port)
    return Reason.OK, backend, VIP + snapshot.listeners[listener, ListenerColumn.VIP]


@compiled
def _unchanged(snapshot: Snapshot, service: int, backend: int) -> int:
    """The mark of a packet that goes to a backend as it is; 0 where it gets other addresses."""
    answer = snapshot.services[service][ServiceColumn.ANSWER]
    if answer == Answer.DIRECT:
        return BACKEND + backend
    return TUNNEL if answer == Answer.TUNNEL else 0


@compiled
def _to_client(packet: Bytes, header: Header, mark: int, work: Work) -> tuple[Reason, int]:
    """Let a backend's reply come from the VIP: what became of it, and the backend's id."""
    if header.kind == KIND_LINK:
        return Reason.LINK, -1
    if header.kind == KIND_ERROR:
        return _error_to_client(packet, header, mark, work)
    reason, backend, vip, ends = _connection_of(work, header, ends_of(packet, header, False), mark)
    if reason == Reason.GONE and vip >= 0 and _is_tcp(header):
        address = work.snapshot.vip_bytes[vip, : address_length(header.version)]
        set_source(packet, header, address, ends.service_port)
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
    else:
        count_words(work, backend, packet, header)
    address = work.snapshot.vip_bytes[vip, : address_length(header.version)]
    set_source(packet, header, address, ends.service_port)
    count_to_client(work, backend, header)
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
    reason, backend, vip, ends = _connection_of(work, quote, ends_of(packet, quote, True), mark)
    if reason != Reason.OK:
        return reason, -1
    address = work.snapshot.vip_bytes[vip, : address_length(header.version)]
    set_quoted_destination(packet, header, quote, address, ends.service_port)
    sender = read_address(packet, source_at(header.version, header.start), header.version)
    if sender.high == ends.server.high and sender.low == ends.server.low:
        set_source(packet, header, address, ends.service_port)
    count_to_client(work, backend, header)
    work.backends_counted[backend][BackendCounter.ERRORS] += _ONE
    return Reason.OK, backend


class Connection(NamedTuple):
    """The connection between client and backend that a packet belongs to."""

    reason: Reason  #: OK, or why there is none
    backend: int  #: its id, or -1
    vip: int  #: VIP id by which it came, or -1
    ends: Ends  #: with the port that the client asks for


@compiled
def _connection_of(work: Work, header: Header, ends: Ends, mark: int) -> Connection:
    """The connection of a packet with these ends.

    Its mark says by which VIP of which service it came, and that it came by one. `header` is that of the
    packet, or of the one that an ICMP error quotes.
    """
    snapshot = work.snapshot
    vip, row = vip_of(mark), address_row(snapshot, ends.server)
    if vip < 0:
        return _unmarked(work, row, header, ends)
    if snapshot.vip_rows[vip] < 0:
        vip = -1
    backend = _member_of(work, snapshot.vip_services[vip], row, header, ends) if vip >= 0 and row >= 0 else -1
    if backend >= 0:
        ends = as_client_asks(snapshot, backend, header, ends)
        port = _port(header, ends)
        if service_of(snapshot, snapshot.vip_rows[vip], ends.protocol, port, 0) >= 0 or listens(
            snapshot, vip, ends.protocol, port
        ):
            return Connection(Reason.OK, backend, vip, ends)
    elif vip >= 0:
        ends = with_port(ends, port_asked(snapshot, vip, ends.protocol, ends.service_port))
    # A client may go on with the same ports without the VIP: then this is its own packet.
    to_backend = row < 0 and address_row(snapshot, ends.client) >= 0
    return Connection(Reason.NO_FLOW if to_backend else Reason.GONE, -1, vip, ends)


@compiled
def _member_of(work: Work, service: int, row: int, header: Header, ends: Ends) -> int:
    """The backend id in a service that the address in (row) `row` has at the port of a packet, or -1.

    Where the packet has no port and the address several, it is the one that has the client.
    """
    snapshot = work.snapshot
    found = -1
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        backend = snapshot.members[at]
        if snapshot.backend_services[backend] == service and answers(
            snapshot, backend, header, ends.service_port
        ):
            found = backend if found < 0 or has_flow(work, backend, ends) else found
    return found


@compiled
def _unmarked(work: Work, row: int, header: Header, ends: Ends) -> Connection:
    """As `_connection_of`, for a packet that conntrack knows nothing of: by the client's flow."""
    snapshot = work.snapshot
    found = Connection(Reason.NO_FLOW, -1, -1, ends)
    if row < 0:
        return found
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        backend = snapshot.members[at]
        service, vip = snapshot.backend_services[backend], snapshot.backend_vips[backend]
        asked = as_client_asks(snapshot, backend, header, ends)
        may_be = answers(snapshot, backend, header, ends.service_port)
        may_be = may_be and listens(snapshot, vip, ends.protocol, _port(header, asked))
        if may_be and has_flow(work, backend, asked):
            # The kernel would take it for a new connection, and could not translate the client's then.
            marks = snapshot.services[service][ServiceColumn.ANSWER] == Answer.MARK
            if snapshot.backend_flags[backend] & Flag.HELD:
                return Connection(Reason.HELD, -1, -1, ends)
            told = snapshot.backend_flags[backend] & _TELL_THE_OTHER
            several = snapshot.backend_flags[backend] & Flag.SEVERAL
            if (marks and not told) or found.backend >= 0 or several:
                return Connection(Reason.UNMARKED, -1, -1, ends)
            found = Connection(Reason.OK, backend, vip, asked)
    return found


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
def _backend_port(work: Work, backend: int, ends: Ends) -> int:
    """The port at which a backend answers what its client asks for."""
    port: int = ends.service_port + work.snapshot.backend_ports[backend, PortColumn.SHIFT]
    return port
