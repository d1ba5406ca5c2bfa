"""What goes to backends by tunnels, and errors about it."""

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.lookup import Ends, address_row, ends_of, vip_row
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import flow_of
from loaded_mp.memory.snapshot import Answer, ServiceColumn
from loaded_mp.packet.address import Address128, address_length
from loaded_mp.packet.header import Header, parse
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.tunnel import Outer, carried_at, encapsulate, overhead, uncover

_ICMP_HEADER = 8
#: The longest packet that fits with its attribute header into the 16-bit length of NFQA_PAYLOAD.
_LONGEST = 65_531


@compiled
def fits_into_tunnel(header: Header, backend: int, work: Work) -> bool:
    """Whether a packet and what the tunnel to a backend adds to it fit into a verdict."""
    service = work.snapshot.backend_services[backend]
    added = overhead(header.version, work.snapshot.services[service][ServiceColumn.TUNNEL_PORT])
    return header.end - header.start + added <= _LONGEST


@compiled
def put_into_tunnel(packet: Bytes, header: Header, end: int, backend: int, work: Work) -> int:
    """Put a packet into one for its backend; the offset of the first byte behind it.

    What belongs to one connection looks alike from outside, and other connections look otherwise, so that
    network cards and routers spread them.
    """
    snapshot = work.snapshot
    row = snapshot.services[snapshot.backend_services[backend]]
    spread = _connection_hash(work, ends_of(packet, header, True))
    source = Address128(
        np.uint64(row[ServiceColumn.SOURCE_HIGH]),
        np.uint64(row[ServiceColumn.SOURCE_LOW]) | (spread & np.uint64(row[ServiceColumn.SOURCE_SPREAD])),
    )
    destination = snapshot.backend_bytes[backend, : address_length(header.version)]
    outer = Outer(row[ServiceColumn.TUNNEL_PORT], source, destination, spread)
    return encapsulate(packet, header, end, outer)


@compiled
def _connection_hash(work: Work, ends: Ends) -> np.uint64:
    scope = np.uint64(ends.protocol << 32 | ends.client_port << 16 | ends.service_port)
    return flow_of(work.table.secret, scope, ends.client).hash


@compiled
def tell_by_tunnel(packet: Bytes, header: Header, work: Work) -> int:
    """Make an ICMP error about a packet of a tunnel one about the client's, for the client.

    Returns the offset of the first byte behind it; 0 if it is about something else, and stays as it is.
    """
    quote = parse(packet, header.upper + _ICMP_HEADER, header.end, True)
    if quote.reason != Reason.OK or quote.version != header.version:
        return 0
    inner = carried_at(quote)
    if inner == 0 or inner >= header.end:
        return 0
    carried = parse(packet, inner, header.end, True)
    if carried.reason != Reason.OK or carried.version != header.version:
        return 0
    about = vip_row(work.snapshot, ends_of(packet, carried, True).server)
    if about < 0 or not _gets_tunnels(work, ends_of(packet, quote, True).server):
        return 0
    return uncover(packet, header, quote, inner)


@compiled
def _gets_tunnels(work: Work, address: Address128) -> bool:
    """Whether tunnels lead to this address."""
    snapshot = work.snapshot
    row = address_row(snapshot, address)
    if row < 0:
        return False
    first = snapshot.address_members[row, 0]
    for at in range(first, first + snapshot.address_members[row, 1]):
        service = snapshot.backend_services[snapshot.members[at]]
        if service >= 0 and snapshot.services[service][ServiceColumn.ANSWER] == Answer.TUNNEL:
            return True
    return False
