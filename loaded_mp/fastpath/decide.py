"""What becomes of a packet whose flow is known, or that a worker has to see it. No I/O and no clock.

Everything that may be said with the worker's functions is. What is not plain stays as it is, and comes to the
queue as if there were no fast path: fragments, options, extension headers, ICMP errors, what has no flow yet,
what may begin or end one, what tells something of a backend's health, and what is to be told anything else
than to go on.
"""

from typing import NamedTuple

from loaded_mp.compiled import Bytes, compiled, goes_on, signed
from loaded_mp.datapath.affinity import client_flow, kind_of
from loaded_mp.datapath.home import answered, keep
from loaded_mp.datapath.lookup import (
    Ends,
    address_row,
    as_client_asks,
    ends_of,
    listener_of,
    listens,
    may_listen,
    vip_row,
)
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import FastPathCounter
from loaded_mp.memory.marks import LEAVING, VIP
from loaded_mp.memory.snapshot import Affinity, Answer, Flag, ListenerColumn, PortColumn, ServiceColumn
from loaded_mp.packet.checksum import read16
from loaded_mp.packet.header import (
    ICMP,
    ICMPV6,
    KIND_FIRST_FRAGMENT,
    KIND_FRAGMENT,
    KIND_PORTS,
    KIND_QUERY,
    KIND_WHOLE,
    TCP,
    UDP,
    Header,
    upper_layer,
)
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.reset import Step, step_of

#: A packet with fewer hops left is answered by this machine.
_HOPS = 2
#: From name servers, what comes to a VIP may be an answer to what this machine asked under it.
DNS = 53
_EXTRAORDINARY = int(Flag.ENDING | Flag.ENDED | Flag.RESET | Flag.HELD)


class Change(NamedTuple):
    """What is to be done with a packet."""

    way: FastPathCounter  #: unless it is TO_BACKEND or TO_CLIENT, it stays as it is and nothing else holds
    backend: int  #: its id
    port: int  #: at which the backend answers
    mark: int


@compiled
def plain(packet: Bytes, length: int) -> Header:
    """The headers of a packet of `length` bytes, of which at least the first 60 are in `packet`.

    As `parse`, but their reason is not OK also where they have options or extension headers, or are of
    another protocol than TCP, UDP and ICMP: then they are not plain.
    """
    if packet[0] == 0x45:
        protocol, end = signed(packet[9]), read16(packet, 2)
        fragment = read16(packet, 6)
        if 20 <= end <= length and protocol in (TCP, UDP, ICMP):
            if fragment & 0x1FFF:
                return Header(Reason.OK, 4, 0, KIND_FRAGMENT, protocol, 20, end, 0)
            kind = KIND_FIRST_FRAGMENT if fragment & 0x2000 else KIND_WHOLE
            return upper_layer(packet, Header(Reason.OK, 4, 0, kind, protocol, 20, end, 0), False)
    elif signed(packet[0]) >> 4 == 6:
        protocol, end = signed(packet[6]), 40 + read16(packet, 4)
        if end <= length and protocol in (TCP, UDP, ICMPV6):
            return upper_layer(packet, Header(Reason.OK, 6, 0, KIND_WHOLE, protocol, 40, end, 0), False)
    return Header(Reason.NOT_IP, 0, 0, 0, 0, 0, 0, 0)


@compiled
def decide(packet: Bytes, header: Header, longest: int, work: Work) -> Change:
    """What is to be done with a plain packet; its flow is renewed.

    `longest`: the longest one of another protocol than TCP that may begin a connection, in bytes.
    """
    if header.reason != Reason.OK or header.kind not in (KIND_PORTS, KIND_QUERY) or _is_part(packet, header):
        return _stays(FastPathCounter.NOT_PLAIN)
    if signed(packet[8 if header.version == 4 else 7]) < _HOPS:
        return _stays(FastPathCounter.FOR_WORKERS)
    ends = ends_of(packet, header, True)
    step = step_of(packet, header) if header.protocol == TCP else Step.GOES_ON
    vip = vip_row(work.snapshot, ends.server)
    if vip < 0:
        return _reply(header, ends_of(packet, header, False), step, work)
    if (header.protocol != TCP and header.end > longest) or ends.client_port == DNS:
        return _stays(FastPathCounter.FOR_WORKERS)
    return _request(ends, vip, step, work)


@compiled
def _is_part(packet: Bytes, header: Header) -> bool:
    """Whether an IPv4 packet is a fragment (RFC 791, 3.1)."""
    return header.version == 4 and read16(packet, 6) & 0x3FFF != 0


@compiled
def _stays(why: FastPathCounter) -> Change:
    return Change(why, -1, 0, 0)


@compiled
def _request(ends: Ends, vip: int, step: int, work: Work) -> Change:
    snapshot = work.snapshot
    first = snapshot.vip_listeners[vip, 0]
    # Those that ask for a mark come first, and marks are set later.
    if snapshot.listeners[first, ListenerColumn.MARK] or address_row(snapshot, ends.client) >= 0:
        return _stays(FastPathCounter.FOR_WORKERS)
    listener = listener_of(snapshot, vip, ends.protocol, ends.service_port, 0)
    if listener < 0:
        return _stays(FastPathCounter.FOREIGN)
    service = snapshot.listeners[listener, ListenerColumn.SERVICE]
    if not _is_known(work, service, step):
        return _stays(FastPathCounter.FOR_WORKERS)
    backend = keep(work, service, client_flow(work, service, ends), ends, step)
    if backend < 0:
        return _stays(FastPathCounter.NO_FLOW)
    if snapshot.backend_flags[backend] & _EXTRAORDINARY:
        return _stays(FastPathCounter.FOR_WORKERS)
    port = ends.service_port + snapshot.backend_ports[backend, PortColumn.SHIFT]
    return Change(
        FastPathCounter.TO_BACKEND, backend, port, VIP + snapshot.listeners[listener, ListenerColumn.VIP]
    )


@compiled
def _reply(header: Header, ends: Ends, step: int, work: Work) -> Change:
    """Of just one backend whose client has a flow: which VIP it will come from, its connection knows."""
    snapshot = work.snapshot
    row = address_row(snapshot, ends.server)
    if row < 0:
        return _stays(FastPathCounter.FOREIGN)
    found = -1
    first, members = snapshot.address_members[row, 0], snapshot.address_members[row, 1]
    if step == Step.BREAKS:
        return _stays(FastPathCounter.FOR_WORKERS)
    for at in range(first, first + members):
        if not goes_on():
            return _stays(FastPathCounter.FOR_WORKERS)
        backend = snapshot.members[at]
        if not may_listen(snapshot, backend, header, ends.service_port):
            continue
        if _answers(work, backend, as_client_asks(snapshot, backend, header, ends), step):
            if found >= 0:
                return _stays(FastPathCounter.FOR_WORKERS)
            found = backend
    if found < 0:
        return _stays(FastPathCounter.NO_FLOW)
    return Change(FastPathCounter.TO_CLIENT, found, 0, LEAVING)


@compiled
def _answers(work: Work, backend: int, asked: Ends, step: int) -> bool:
    """Whether a reply is one of a backend to a client that has a flow with it; it is renewed then."""
    snapshot = work.snapshot
    service = snapshot.backend_services[backend]
    if not _is_known(work, service, step) or snapshot.backend_flags[backend] & _EXTRAORDINARY:
        return False
    if not listens(snapshot, snapshot.backend_vips[backend], asked.protocol, asked.service_port):
        return False
    return bool(answered(work, backend, client_flow(work, service, asked), asked, step) == backend)


@compiled
def _is_known(work: Work, service: int, step: int) -> bool:
    """Whether what a flow says is all that is to be known of a packet to or from a service."""
    row = work.snapshot.services[service]
    if row[ServiceColumn.ANSWER] != Answer.REWRITE or row[ServiceColumn.BEFORE]:
        return False
    affinity = kind_of(work, service)
    return bool(affinity == Affinity.SOURCE or (affinity == Affinity.CONNECTION and step == Step.GOES_ON))
