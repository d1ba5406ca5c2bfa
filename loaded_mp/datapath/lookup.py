"""Finding things in a snapshot: the service of a VIP's packet, the backends of a host address."""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.memory.snapshot import (
    LISTENER_FIRST_PORT,
    LISTENER_LAST_PORT,
    LISTENER_PROTOCOL,
    LISTENER_SERVICE,
    Snapshot,
)

_MAPPED = np.uint64(0xFFFF << 32)
_EIGHT = np.uint64(8)
_ZERO = np.uint64(0)

#: Stands for "the packet has no port": matches the listeners of any port.
NO_PORT = -1


@compiled
def _read(packet: Bytes, at: int, length: int) -> np.uint64:
    value = _ZERO
    for i in range(at, at + length):
        value = value << _EIGHT | np.uint64(packet[i])
    return value


@compiled
def read_address(packet: Bytes, at: int, version: int) -> tuple[np.uint64, np.uint64]:
    """The address at offset `at` as a snapshot holds it: two halves, IPv4 as IPv4-mapped."""
    if version == 4:
        return _ZERO, _MAPPED | _read(packet, at, 4)
    return _read(packet, at, 8), _read(packet, at + 8, 8)


@compiled
def _row_of(addresses: npt.NDArray[np.uint64], rows: int, high: np.uint64, low: np.uint64) -> int:
    """The row of an address among the first `rows` of uint64[n, 2], which ascend; -1 if it is not there."""
    first, last = 0, rows - 1
    while first <= last:
        middle = (first + last) // 2
        if addresses[middle, 0] == high and addresses[middle, 1] == low:
            return middle
        if addresses[middle, 0] < high or (addresses[middle, 0] == high and addresses[middle, 1] < low):
            first = middle + 1
        else:
            last = middle - 1
    return -1


@compiled
def vip_row(snapshot: Snapshot, high: np.uint64, low: np.uint64) -> int:
    """The row of `vips` that holds an address, or -1."""
    return _row_of(snapshot.vips, int(snapshot.sizes[0]), high, low)


@compiled
def host_row(snapshot: Snapshot, high: np.uint64, low: np.uint64) -> int:
    """The row of `hosts` that holds a backend's address, or -1."""
    return _row_of(snapshot.hosts, int(snapshot.sizes[1]), high, low)


@compiled
def service_of(snapshot: Snapshot, vip: int, protocol: int, port: int) -> int:
    """The service id of a packet for (row) `vip`, or -1. The first listener that fits counts."""
    first = int(np.int64(snapshot.vip_listeners[vip, 0]))
    for row in range(first, first + int(np.int64(snapshot.vip_listeners[vip, 1]))):
        wanted = snapshot.listeners[row, LISTENER_PROTOCOL]
        if wanted not in (0, protocol):
            continue
        low = snapshot.listeners[row, LISTENER_FIRST_PORT]
        if port == NO_PORT or low <= port <= snapshot.listeners[row, LISTENER_LAST_PORT]:
            return int(np.int64(snapshot.listeners[row, LISTENER_SERVICE]))
    return -1


@compiled
def member_of(snapshot: Snapshot, host: int, service: int) -> int:
    """The backend id that (row) `host` has in a service, or -1."""
    first = int(np.int64(snapshot.host_backends[host, 0]))
    for row in range(first, first + int(np.int64(snapshot.host_backends[host, 1]))):
        backend = int(np.int64(snapshot.members[row]))
        if snapshot.backend_services[backend] == service:
            return backend
    return -1


@compiled
def ports(packet: Bytes, at: int) -> tuple[int, int]:
    """Source and destination port at offset `at` (RFC 9293, 3.1; RFC 768)."""
    return (
        int(np.int64(packet[at])) << 8 | int(np.int64(packet[at + 1])),
        int(np.int64(packet[at + 2])) << 8 | int(np.int64(packet[at + 3])),
    )
