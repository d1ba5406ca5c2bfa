"""While packets wait, one source takes no more than its share of a worker.

As long as a worker keeps pace, none of this happens, and what came while nobody served, as at a hand-over,
is worked off. When what waits takes longer than CROWDED_US, and has done so for LASTING_US, a batch is
thinned: of each source no more than `allowed` packets are decided, the others dropped, which costs a
fraction of deciding them. `allowed` falls with each batch that is thinned and rises by one with each other,
so that it settles where the worker keeps pace: sources that send less than that lose nothing, and those
that send more are all cut to the same. Clients that have no flow yet count as one source, which spoofed
ones look like. A source that is alone is left to the queue's bound.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.datapath.affinity import client_flow, known_flow
from loaded_mp.datapath.lookup import ends_of, service_of, vip_row
from loaded_mp.datapath.messages import Queued, from_client
from loaded_mp.datapath.system import Longs
from loaded_mp.datapath.work import Work
from loaded_mp.flows.atomics import Words
from loaded_mp.flows.table import find
from loaded_mp.packet.address import Address128, destination_at, read_address, source_at
from loaded_mp.packet.header import KIND_PORTS, KIND_QUERY, parse
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.reset import Step

#: A source is not alone for so long after another one was seen, and a crowd not over, in microseconds.
_ALONE_US = 1_000_000
#: So long may the last packet have to wait, in microseconds: a quarter of what the queue has room for.
CROWDED_US = 5_000
#: So long it may be crowded before anything is dropped, in microseconds.
LASTING_US = 300_000
#: Memory that the kernel takes for a message beside its packet, by measurement, in bytes.
_MESSAGE_BYTES = 700
_HEADER_4, _HEADER_6 = 20, 40
_ZERO = np.uint64(0)
_NOBODY = Address128(_ZERO, _ZERO)
#: In place of an address, ::1, which no client has.
STRANGERS = Address128(_ZERO, np.uint64(1))

Floats = npt.NDArray[np.float64]


class Shares(NamedTuple):
    """Who has sent the packets of a batch, and what a source may have of it. One worker's own memory."""

    sources: Words  #: uint64[batch + 1, 2]: the addresses by slot, then the one that was seen last
    allowed: Longs  #: int64[1]: packets of a batch that one source may have
    others_us: Longs  #: int64[1]: when another was seen than before
    crowd_us: Longs  #: int64[2]: when it became crowded, and when it was so the last time; 0: never
    us_per_byte: Floats  #: float64[1]: how long a worker takes for what waits, by the memory of it


def new_shares(batch: int) -> Shares:
    """Memory for batches of so many packets; all of one may be one source's."""
    return Shares(
        np.zeros((batch + 1, 2), np.uint64),
        np.full(1, batch, np.int64),
        np.full(1, -_ALONE_US, np.int64),
        np.zeros(2, np.int64),
        np.zeros(1, np.float64),
    )


@compiled
def crowded(shares: Shares, waiting_bytes: int, now_us: int) -> bool:
    """Whether so much waits that it takes too long, and lastingly; a source may have less of a batch then."""
    too_long = bool(waiting_bytes * shares.us_per_byte[0] > CROWDED_US)
    lasting = False
    if too_long:
        # Thinning makes it calm for moments: these are part of the same crowd.
        if now_us - shares.crowd_us[1] > _ALONE_US or shares.crowd_us[1] == 0:
            shares.crowd_us[0] = now_us
        shares.crowd_us[1] = now_us
        lasting = now_us - shares.crowd_us[0] > LASTING_US
    allowed = shares.allowed[0]
    allowed += -((allowed + 7) // 8) if lasting else 1
    shares.allowed[0] = min(max(allowed, 1), shares.sources.shape[0] - 1)
    return lasting


@compiled
def learn_pace(shares: Shares, packets: int, packet_bytes: int, took_us: int) -> None:
    """Take note of how long a full batch took; one that was held up counts for little."""
    us_per_byte = took_us / (packet_bytes + packets * _MESSAGE_BYTES)
    shares.us_per_byte[0] += (us_per_byte - shares.us_per_byte[0]) / 8


@compiled
def over_share(shares: Shares, i: int, source: Address128, now_us: int) -> bool:
    """Whether packet i of a batch, seen in order, is more than its source may have."""
    _write(shares, i, source)
    if _is(shares, i, _NOBODY):
        return False
    if not _is(shares, -1, source):
        if not _is(shares, -1, _NOBODY):
            shares.others_us[0] = now_us
        _write(shares, -1, source)
    had = 0
    for j in range(i):
        had += _is(shares, j, source)
    return bool(had >= shares.allowed[0] and now_us - shares.others_us[0] < _ALONE_US)


@compiled
def _write(shares: Shares, i: int, source: Address128) -> None:
    shares.sources[i, 0], shares.sources[i, 1] = source.high, source.low


@compiled
def _is(shares: Shares, i: int, source: Address128) -> bool:
    return bool(shares.sources[i, 0] == source.high and shares.sources[i, 1] == source.low)


@compiled
def source_of(packet: Bytes, queued: Queued, work: Work) -> Address128:
    """The client that a packet comes from or goes to; the address 0 if it cannot be told.

    Clients without a flow are one source together: a flood's sources may be spoofed.
    """
    length = queued.end - queued.start
    version = signed(packet[queued.start]) >> 4 if length >= _HEADER_4 else 0
    if version != 4 and (version != 6 or length < _HEADER_6):
        return _NOBODY
    if not from_client(queued):
        return read_address(packet, destination_at(version, queued.start), version)
    if _is_stranger(packet, queued, work):
        return STRANGERS
    return read_address(packet, source_at(version, queued.start), version)


@compiled
def _is_stranger(packet: Bytes, queued: Queued, work: Work) -> bool:
    """Whether a packet would begin a flow."""
    header = parse(packet, queued.start, queued.end, queued.cut)
    if header.reason != Reason.OK or header.kind not in (KIND_PORTS, KIND_QUERY):
        return False
    ends = ends_of(packet, header, True)
    vip = vip_row(work.snapshot, ends.server)
    if vip < 0:
        return False
    service = service_of(work.snapshot, vip, ends.protocol, ends.service_port, queued.mark)
    if service < 0:
        return False
    own = client_flow(work, service, ends)
    return find(work.table, known_flow(work, service, own, ends, Step.GOES_ON))[0] < 0
