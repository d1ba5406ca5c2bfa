"""The service data that workers read: two buffers and a generation number.

The supervisor writes the buffer that nobody reads and then raises the generation; `generation & 1` says
which buffer holds. Workers stamp the generation they use, and a buffer is written again only when every
worker has stamped the generation that made it idle.

Addresses are pairs of uint64, see `packet/address.py`.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.segment import Field

#: Rows of what each worker counts; those that nobody uses take no pages.
MAX_WORKERS = 64
MAX_SERVICES = 2048
MAX_VIPS = 4096
MAX_LISTENERS = 8192
MAX_BACKENDS = 8192
MAX_SLOTS = 1 << 21
#: Affinities that a service is known to have had before the one that it has.
MAX_BEFORE = 8

#: Added to the backend id in the value of a flow that is a connection of which one end has ended it.
CLOSING = 0x8000
#: Added to it in the value of an entry that says which backend a destination has.
HOME = 0x4000
#: In place of a limit: no backend has so many flows.
NO_LIMIT = 1 << 40


class Answer(IntEnum):
    """What a worker does with a packet whose backend is decided."""

    REWRITE = 0  #: put the backend's address into it
    MARK = 1  #: give it the backend's mark, by which the kernel goes on with its connection
    DIRECT = 2  #: give it the backend's mark, by which the kernel sends it, as each that follows
    TUNNEL = 3  #: put it into another one for the backend


class Pick(IntEnum):
    """How a worker takes a backend out of a service's slots."""

    NEXT = 0  #: the slots in turn, over all workers
    HASH = 1  #: the slot that the flow's address has for good
    LEAST = 2  #: the backend with the fewest (open flows + plus) for its weight, the first of equals
    IDLE = 3  #: the first backend without open flows, else as LEAST
    ROOM = 4  #: the first backend with no more open flows than its weight
    TWO = 5  #: of two slots taken at random the one with fewer (open flows + plus) for its weight
    DESTINATION = 6  #: the slot that the VIP has for good
    FIRST = 7  #: the first backend
    LOCAL = 8  #: the backend that the VIP has, unless it is overloaded, else as LEAST
    REPLICATED = 9  #: of the backends that the VIP has, else as LEAST, which is one of them then


class Affinity(IntEnum):
    """What makes packets one flow."""

    SOURCE = 0  #: the client's address, or its network
    CONNECTION = 1  #: both addresses and ports
    NONE = 2  #: nothing: each packet by itself


class ListenerColumn(IntEnum):
    """Columns of `Snapshot.listeners`."""

    PROTOCOL = 0  #: IANA number; 0: all of them
    FIRST_PORT = 1
    LAST_PORT = 2
    SERVICE = 3  #: service id
    VIP = 4  #: VIP id
    MARK = 5  #: netfilter mark that an operator's rules have set; 0: none is asked for


class PortColumn(IntEnum):
    """Columns of `Snapshot.backend_ports`."""

    FIRST = 0  #: on which the backend answers
    LAST = 1
    SHIFT = 2  #: by how much they are higher than those that clients ask for
    LOWEST = 3  #: below which, as the backend has them, its service listens to none
    HIGHEST = 4


class ServiceColumn(IntEnum):
    """Columns of `Snapshot.services`."""

    SLOTS_AT = 0  #: row of `slots`
    SLOTS = 1  #: how many
    TCP_IDLE_S = 2
    UDP_IDLE_S = 3
    OTHER_IDLE_S = 4
    UNCONFIRMED_S = 5  #: until a second packet comes or the backend answers
    ANSWER = 6  #: an Answer
    PICK = 7  #: a Pick
    PLUS = 8  #: added to open flows where they are compared
    WEIGHTED = 9  #: 0: all weights count as 1 there
    BEFORE = 10  #: how many affinities it had that are still looked for
    FIN_IDLE_S = 11  #: of a connection of which one end has ended it
    REJECTS = 12  #: 1: without a backend packets are rejected, 0: dropped
    #: Backends that stand behind its slots, each once; 0: none stand there, as none has a limit.
    LIMITED = 13
    TUNNEL_PORT = 14  #: UDP port of tunnels; 0: IP in IP
    SOURCE_HIGH = 15  #: the first source address of tunnels' packets, as Address128
    SOURCE_LOW = 16
    SOURCE_SPREAD = 17  #: which bits of its lower half are chosen by the connection


class AffinityColumn(IntEnum):
    """Columns of `Snapshot.affinities`."""

    KIND = 0  #: an Affinity
    NETWORK_HIGH = 1  #: which bits of a client's address count, as Address128
    NETWORK_LOW = 2
    NUMBER = 3  #: by which what was entered before and after a change is told apart
    PORTS = 4  #: which bits of a flow's scope count that are of protocol and ports: all of them, or none


class LimitColumn(IntEnum):
    """Columns of `Snapshot.backend_limits`."""

    MOST = 0  #: with so many open flows a backend is full
    FEWEST = 1  #: with fewer than these it is no more


class Flag(IntEnum):
    """Values of `Snapshot.backend_flags`, to be added up."""

    USABLE = 1  #: its flows stay
    SEVERAL = 2  #: its service has several VIPs: a reply alone does not say which
    ENDING = 4  #: data that one end of its TCP connections sends reaches the other as a reset
    ENDED = 8  #: data of backends does no more, and what clients send is rejected
    RESET = 16  #: both of that for its TCP connections, but new ones go elsewhere
    KEEP_TCP = 32  #: its flows stay, though it is not usable, for packets of this protocol
    KEEP_UDP = 64
    KEEP_OTHER = 128
    HELD = 256  #: what is under way is dropped: its service goes over to another way of forwarding
    ANYTHING = 512  #: it may begin something over UDP from where its service listens: that is no reply


class Snapshot(NamedTuple):
    """One buffer. Services, VIPs and backends are known by ids that stay the same across reloads.

    A VIP id is that of an address in one service: so the mark of a connection says both.
    """

    seeds: npt.NDArray[np.uint64]  #: [2]: of `vip_index` and of `address_index`
    vips: npt.NDArray[np.uint64]  #: [MAX_VIPS, 2] addresses, each once
    vip_index: npt.NDArray[np.int16]  #: [8 * MAX_VIPS] rows of `vips`, see `datapath/index.py`
    vip_listeners: npt.NDArray[np.int64]  #: [MAX_VIPS, 2]: first row of `listeners`, how many
    vip_bytes: npt.NDArray[np.uint8]  #: [MAX_VIPS, 16] by VIP id, network byte order, IPv4 in the first 4
    vip_rows: npt.NDArray[np.int64]  #: [MAX_VIPS] VIP id -> row of `vips`; -1: nobody has that address
    vip_services: npt.NDArray[np.int64]  #: [MAX_VIPS] VIP id -> service id; -1: its service is gone
    listeners: npt.NDArray[np.int64]  #: [MAX_LISTENERS, 6], see ListenerColumn
    services: npt.NDArray[np.int64]  #: [MAX_SERVICES, 18] by service id, see ServiceColumn
    #: [MAX_SERVICES, 1 + MAX_BEFORE, 5] by service id, see AffinityColumn: first the one that it has, then
    #: those that it had in the order in which they are asked: connections, and else the oldest first
    affinities: npt.NDArray[np.int64]
    slots: npt.NDArray[np.uint16]  #: [MAX_SLOTS] backend ids
    backend_services: npt.NDArray[np.int64]  #: [MAX_BACKENDS] the service of each backend id
    backend_vips: npt.NDArray[np.int64]  #: [MAX_BACKENDS] the (first) VIP id of each backend's service
    backend_flags: npt.NDArray[np.int64]  #: [MAX_BACKENDS] see Flag
    backend_weights: npt.NDArray[np.int64]  #: [MAX_BACKENDS] effective weights
    backend_limits: npt.NDArray[np.int64]  #: [MAX_BACKENDS, 2] see LimitColumn
    backend_bytes: npt.NDArray[np.uint8]  #: [MAX_BACKENDS, 16] as vip_bytes
    backend_ports: npt.NDArray[np.int64]  #: [MAX_BACKENDS, 5], see PortColumn
    addresses: npt.NDArray[np.uint64]  #: [MAX_BACKENDS, 2] of backends, each once
    address_index: npt.NDArray[np.int16]  #: [8 * MAX_BACKENDS] rows of `addresses`
    address_members: npt.NDArray[np.int64]  #: [MAX_BACKENDS, 2]: first row of `members`, how many
    members: npt.NDArray[np.int64]  #: [MAX_BACKENDS] backend ids, those of one address together


_SHAPES: dict[str, tuple[npt.DTypeLike, tuple[int, ...], tuple[str, ...]]] = {
    "seeds": (np.uint64, (2,), ()),
    "vips": (np.uint64, (MAX_VIPS, 2), ()),
    "vip_index": (np.int16, (8 * MAX_VIPS,), ()),
    "vip_listeners": (np.int64, (MAX_VIPS, 2), ()),
    "vip_bytes": (np.uint8, (MAX_VIPS, 16), ()),
    "vip_rows": (np.int64, (MAX_VIPS,), ()),
    "vip_services": (np.int64, (MAX_VIPS,), ()),
    "listeners": (np.int64, (MAX_LISTENERS, len(ListenerColumn)), tuple(ListenerColumn.__members__)),
    "services": (np.int64, (MAX_SERVICES, len(ServiceColumn)), tuple(ServiceColumn.__members__)),
    "affinities": (
        np.int64,
        (MAX_SERVICES, 1 + MAX_BEFORE, len(AffinityColumn)),
        tuple(AffinityColumn.__members__),
    ),
    "slots": (np.uint16, (MAX_SLOTS,), ()),
    "backend_services": (np.int64, (MAX_BACKENDS,), ()),
    "backend_vips": (np.int64, (MAX_BACKENDS,), ()),
    "backend_flags": (np.int64, (MAX_BACKENDS,), tuple(Flag.__members__)),
    "backend_weights": (np.int64, (MAX_BACKENDS,), ()),
    "backend_limits": (np.int64, (MAX_BACKENDS, len(LimitColumn)), tuple(LimitColumn.__members__)),
    "backend_bytes": (np.uint8, (MAX_BACKENDS, 16), ()),
    "backend_ports": (np.int64, (MAX_BACKENDS, len(PortColumn)), tuple(PortColumn.__members__)),
    "addresses": (np.uint64, (MAX_BACKENDS, 2), ()),
    "address_index": (np.int16, (8 * MAX_BACKENDS,), ()),
    "address_members": (np.int64, (MAX_BACKENDS, 2), ()),
    "members": (np.int64, (MAX_BACKENDS,), ()),
}


def snapshot_fields(prefix: str) -> list[Field]:
    """The fields of one buffer in a segment, their names beginning with `prefix`."""
    return [Field(prefix + name, *shape) for name, shape in _SHAPES.items()]


def snapshot_from(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> Snapshot:
    """The buffer whose fields begin with `prefix`."""
    return Snapshot(**{name: arrays[prefix + name] for name in _SHAPES})


def new_snapshot() -> Snapshot:
    """A buffer of zeros that is this process's own."""
    return Snapshot(**{name: np.zeros(shape, dtype) for name, (dtype, shape, _) in _SHAPES.items()})
