"""The service data that workers read: two buffers and a generation number.

The supervisor writes the buffer that nobody reads and then raises the generation; `generation & 1` says
which buffer holds. Workers stamp the generation they use, and a buffer is written again only when every
worker has stamped the generation that made it idle.

Addresses are pairs of uint64: an IPv6 address as two big-endian halves read as numbers, an IPv4 address as
its IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaded_mp.memory.segment import Field

MAX_SERVICES = 2048
MAX_VIPS = 4096
MAX_LISTENERS = 8192
MAX_BACKENDS = 8192
MAX_SLOTS = 1 << 20

# Columns of `listeners`.
LISTENER_PROTOCOL, LISTENER_FIRST_PORT, LISTENER_LAST_PORT, LISTENER_SERVICE = range(4)
# Columns of `services`.
(
    SERVICE_SLOTS_AT,
    SERVICE_SLOTS,
    SERVICE_TCP_IDLE_S,
    SERVICE_UDP_IDLE_S,
    SERVICE_OTHER_IDLE_S,
    SERVICE_BY_CONNTRACK,  # 1: packets are marked for the kernel's NAT, not rewritten
) = range(6)
_SERVICE_COLUMNS = 6
#: Added to the backend id in a packet's mark, so that other programs' marks are told apart.
MARK = 0x4C4D_0000
# Values of `backend_flags`, to be added up.
USABLE = 1  # up and not in maintenance: its flows stay
SHARED = 2  # serves more than one (service, VIP): a reply alone does not say which


class Snapshot(NamedTuple):
    """One buffer. Services, VIPs and backends are known by ids that stay the same across reloads."""

    sizes: npt.NDArray[np.int64]  #: [2]: how many rows of `vips` and of `hosts` are used
    vips: npt.NDArray[np.uint64]  #: [MAX_VIPS, 2] addresses in ascending order
    vip_listeners: npt.NDArray[np.int32]  #: [MAX_VIPS, 3]: first row of `listeners`, how many, VIP id
    vip_bytes: npt.NDArray[np.uint8]  #: [MAX_VIPS, 16] by VIP id, network byte order, IPv4 in the first 4
    vip_rows: npt.NDArray[np.int32]  #: [MAX_VIPS] VIP id -> row of `vips`
    listeners: npt.NDArray[np.int32]  #: [MAX_LISTENERS, 4], see LISTENER_*; protocol 0: all of them
    services: npt.NDArray[np.int32]  #: [MAX_SERVICES, 6] by service id, see SERVICE_*
    slots: npt.NDArray[np.uint16]  #: [MAX_SLOTS] backend ids
    backend_services: npt.NDArray[np.int32]  #: [MAX_BACKENDS] the service of each backend id
    backend_vips: npt.NDArray[np.int32]  #: [MAX_BACKENDS] the (first) VIP id of each backend's service
    backend_flags: npt.NDArray[np.uint8]  #: [MAX_BACKENDS] USABLE, SHARED
    backend_bytes: npt.NDArray[np.uint8]  #: [MAX_BACKENDS, 16] as vip_bytes
    hosts: npt.NDArray[np.uint64]  #: [MAX_BACKENDS, 2] backend addresses in ascending order, each once
    host_backends: npt.NDArray[np.int32]  #: [MAX_BACKENDS, 2]: first row of `members`, how many
    members: npt.NDArray[np.int32]  #: [MAX_BACKENDS] backend ids, those of one address together


_SHAPES: dict[str, tuple[npt.DTypeLike, tuple[int, ...]]] = {
    "sizes": (np.int64, (2,)),
    "vips": (np.uint64, (MAX_VIPS, 2)),
    "vip_listeners": (np.int32, (MAX_VIPS, 3)),
    "vip_bytes": (np.uint8, (MAX_VIPS, 16)),
    "vip_rows": (np.int32, (MAX_VIPS,)),
    "listeners": (np.int32, (MAX_LISTENERS, 4)),
    "services": (np.int32, (MAX_SERVICES, _SERVICE_COLUMNS)),
    "slots": (np.uint16, (MAX_SLOTS,)),
    "backend_services": (np.int32, (MAX_BACKENDS,)),
    "backend_vips": (np.int32, (MAX_BACKENDS,)),
    "backend_flags": (np.uint8, (MAX_BACKENDS,)),
    "backend_bytes": (np.uint8, (MAX_BACKENDS, 16)),
    "hosts": (np.uint64, (MAX_BACKENDS, 2)),
    "host_backends": (np.int32, (MAX_BACKENDS, 2)),
    "members": (np.int32, (MAX_BACKENDS,)),
}


def snapshot_fields(prefix: str) -> list[Field]:
    """The fields of one buffer in a segment, their names beginning with `prefix`."""
    return [Field(prefix + name, dtype, shape) for name, (dtype, shape) in _SHAPES.items()]


def snapshot_from(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> Snapshot:
    """The buffer whose fields begin with `prefix`."""
    return Snapshot(**{name: arrays[prefix + name] for name in _SHAPES})
