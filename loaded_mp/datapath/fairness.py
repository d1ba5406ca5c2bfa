"""While packets wait, one source takes no more than its share of a worker.

A queue that is always short needs none of this. When more waits than a moment's work, a batch is thinned: of
each source no more than `allowed` packets are decided, the others dropped, which costs a fraction of deciding
them. `allowed` falls by one with each batch that is read while too much waits, and rises by one with each other.
So it settles where the worker keeps pace: sources that send less than that lose nothing, and those that send
more are all cut to the same. A source that is alone is left to the queue's bound.
"""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.messages import HOOK_PREROUTING, Queued
from loaded_mp.datapath.system import Longs
from loaded_mp.flows.atomics import Words
from loaded_mp.packet.address import destination_at, read_address, source_at

#: A source is not alone for so long after another one was seen, in microseconds.
_ALONE_US = 1_000_000
_HEADER_4, _HEADER_6 = 20, 40
_NOBODY = np.uint64(0)


class Shares(NamedTuple):
    """Who has sent the packets of a batch, and what a source may have of it. One worker's own memory."""

    sources: Words  #: uint64[batch], by slot
    allowed: Longs  #: int64[1]: packets of a batch that one source may have
    last: Words  #: uint64[1]: the source that was seen last
    others_us: Longs  #: int64[1]: when another was seen than before


def new_shares(batch: int) -> Shares:
    """Memory for batches of so many packets; all of one may be one source's."""
    return Shares(
        np.zeros(batch, np.uint64),
        np.full(1, batch, np.int64),
        np.zeros(1, np.uint64),
        np.full(1, -_ALONE_US, np.int64),
    )


@compiled
def adapt(shares: Shares, crowded: bool) -> None:
    """Let a source have less of a batch that was read while too much waited, else more."""
    allowed = shares.allowed[0] + (-1 if crowded else 1)
    shares.allowed[0] = min(max(allowed, 1), shares.sources.shape[0])


@compiled
def over_share(shares: Shares, i: int, source: np.uint64, now_us: int) -> bool:
    """Whether packet i of a batch, seen in order, is more than its source may have."""
    shares.sources[i] = source
    if source == _NOBODY:
        return False
    if source != shares.last[0]:
        if shares.last[0] != _NOBODY:
            shares.others_us[0] = now_us
        shares.last[0] = source
    had = 0
    for j in range(i):
        had += shares.sources[j] == source
    return had >= shares.allowed[0] and now_us - shares.others_us[0] < _ALONE_US


@compiled
def source_of(packet: Bytes, queued: Queued) -> np.uint64:
    """The client that a packet comes from or goes to, as a number; 0 if it cannot be told.

    Of IPv6 it is the network of 64 bits, as one machine may have all of its addresses.
    """
    length = queued.end - queued.start
    version = packet[queued.start] >> 4 if length >= _HEADER_4 else 0
    if version != 4 and (version != 6 or length < _HEADER_6):
        return _NOBODY
    at = source_at(version, queued.start)
    if queued.hook != HOOK_PREROUTING:
        at = destination_at(version, queued.start)
    address = read_address(packet, at, version)
    return address.low if version == 4 else address.high
