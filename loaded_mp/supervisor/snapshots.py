"""Building snapshots: from a configuration and the state of its backends to what workers read.

`Ids.expand` turns a configuration into parts, one for each service and family, with the ids by which workers
know them; `fill` writes parts into a buffer. Ids outlive a configuration: the flow table holds them. Whoever
takes a key out of the configuration releases its id once no flow holds it any more.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from loaded_mp.config.model import Address, Backend, Config, Service
from loaded_mp.memory.snapshot import (
    MARK,
    MAX_BACKENDS,
    MAX_LISTENERS,
    MAX_SERVICES,
    MAX_SLOTS,
    MAX_VIPS,
    SHARED,
    USABLE,
    Snapshot,
)
from loaded_mp.schedulers import SCHEDULERS, Slots
from loaded_mp.schedulers.weighted_round_robin import MAX_ROUND

Family = Literal[4, 6]
Key = TypeVar("Key", bound=Hashable)

ServiceKey = tuple[str, Family]  #: name of the service
BackendKey = tuple[str, Address]  #: name of the service

#: IANA protocol numbers by what a listener says; 0 in a snapshot stands for all of them.
_PROTOCOLS: dict[Family, dict[str, int]] = {
    4: {"tcp": 6, "udp": 17, "icmp": 1},
    6: {"tcp": 6, "udp": 17, "icmp": 58},
}
_ANY_PROTOCOL, _FIRST_PORT, _LAST_PORT = 0, 0, 65_535
_IPV4_MAPPED = 0xFFFF << 32
_HALF = (1 << 64) - 1


class TooLargeError(Exception):
    """A configuration needs more of something than workers have room for; the text says of what."""

    def __init__(self, what: str, needed: int, limit: int, advice: str) -> None:
        super().__init__(f"the configuration needs {needed:,} {what}, there is room for {limit:,}: {advice}")


class IdTable(Generic[Key]):
    """Numbers below `limit` for keys. A key keeps its number until it is released."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._ids: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._free = list(range(limit - 1, -1, -1))

    def check(self, keys: Iterable[Key]) -> None:
        """Raise TooLargeError unless every one of `keys` can have a number beside those that are held."""
        needed = len(self._ids.keys() | set(keys))
        if needed > self._limit:
            advice = "use fewer (those that a reload removed count until their flows are forgotten)"
            raise TooLargeError(self._what, needed, self._limit, advice)

    def id_of(self, key: Key) -> int:
        """The number of a key, a new one if it has none. See `check`."""
        if key not in self._ids:
            number = self._free.pop()
            self._ids[key], self._keys[number] = number, key
        return self._ids[key]

    def release(self, number: int) -> None:
        """Let a number be given to another key. Raises KeyError if nobody holds it."""
        del self._ids[self._keys.pop(number)]
        self._free.append(number)

    def held(self) -> set[int]:
        """All numbers that are given out."""
        return set(self._keys)


@dataclass(frozen=True)
class Part:
    """One family of a service, which is what workers know as a service."""

    id: int
    family: Family
    service: Service
    vips: dict[int, Address]  #: by VIP id
    backends: dict[int, Backend]  #: by backend id


class Ids:
    """The ids of services, VIPs and backends."""

    def __init__(self) -> None:
        self.services: IdTable[ServiceKey] = IdTable("services (each family counts)", MAX_SERVICES)
        self.vips: IdTable[Address] = IdTable("VIPs", MAX_VIPS)
        self.backends: IdTable[BackendKey] = IdTable("backends (one in two services is two)", MAX_BACKENDS)

    def expand(self, config: Config) -> tuple[Part, ...]:
        """The parts of a configuration. Raises TooLargeError, and then changes nothing.

        Families in which a service has no VIP are left out.
        """
        families: list[tuple[Service, Family, list[Address], list[Backend]]] = []
        for service in config.services:
            for family in (4, 6):
                vips = list(dict.fromkeys(vip.ip for vip in service.vips if vip.version == family))
                if vips:
                    backends = [each for each in service.backends if each.address.version == family]
                    families.append((service, family, vips, backends))
        self.services.check((service.name, family) for service, family, _, _ in families)
        self.vips.check(vip for _, _, vips, _ in families for vip in vips)
        self.backends.check((s.name, each.address) for s, _, _, backends in families for each in backends)
        listeners = sum(len(vips) * max(1, len(service.listen)) for service, _, vips, _ in families)
        if listeners > MAX_LISTENERS:
            advice = "use port ranges or fewer entries in listen"
            raise TooLargeError("listeners on its VIPs", listeners, MAX_LISTENERS, advice)
        slots = sum(_most_slots([each.weight for each in backends]) for _, _, _, backends in families)
        if slots > MAX_SLOTS:
            raise TooLargeError(
                "scheduler slots", slots, MAX_SLOTS, "use smaller weights of the same proportion"
            )
        return tuple(
            Part(
                self.services.id_of((service.name, family)),
                family,
                service,
                {self.vips.id_of(vip): vip for vip in vips},
                {self.backends.id_of((service.name, each.address)): each for each in backends},
            )
            for service, family, vips, backends in families
        )


def marks_of(parts: Iterable[Part]) -> dict[BackendKey, int]:
    """The marks by which the kernel's NAT knows the backends of services that it forwards."""
    return {
        (part.service.name, backend.address): MARK + number
        for part in parts
        if part.service.forwarding == "conntrack"
        for number, backend in part.backends.items()
    }


def _most_slots(weights: Sequence[int]) -> int:
    """How many slots any scheduler takes for these weights, whichever of them are set to 0."""
    return max(len(weights), min(sum(weights) // max(1, int(np.gcd.reduce(weights or [1]))), MAX_ROUND))


def fill(
    snapshot: Snapshot,
    parts: Sequence[Part],
    usable: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.int64],
) -> None:
    """Write a whole buffer that nobody reads.

    `usable` and `weights` are arrays of MAX_BACKENDS, by backend id: whether it is up and not in maintenance,
    so that its flows stay, and its effective weight (at most the configured one), which may be 0 while its
    flows stay. What is not usable gets no new flows, whatever its weight.
    """
    _fill_vips(snapshot, parts)
    _fill_backends(snapshot, parts, usable)
    _fill_hosts(snapshot, parts)
    _fill_services(snapshot, parts, np.where(usable, weights, 0))


def _halves(address: Address) -> tuple[int, int]:
    """An address as snapshots sort and compare it."""
    number = int(address)
    return (0, _IPV4_MAPPED | number) if address.version == 4 else (number >> 64, number & _HALF)


def _bytes(addresses: Sequence[Address]) -> npt.NDArray[np.uint8]:
    """Addresses in network byte order, uint8[n, 16]."""
    packed = b"".join(address.packed.ljust(16, b"\0") for address in addresses)
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


def _listeners(part: Part) -> list[tuple[int, int, int, int]]:
    """The rows of `listeners` that a part puts on each of its VIPs."""
    protocols = _PROTOCOLS[part.family]
    return [
        (protocols[each.protocol], each.first_port, each.last_port, part.id) for each in part.service.listen
    ] or [(_ANY_PROTOCOL, _FIRST_PORT, _LAST_PORT, part.id)]


def _breadth(listener: tuple[int, int, int, int]) -> tuple[bool, int]:
    """Sorts the specific before what catches all, as the first listener that fits counts."""
    protocol, first_port, last_port, _ = listener
    return protocol == _ANY_PROTOCOL, last_port - first_port


def _fill_vips(snapshot: Snapshot, parts: Sequence[Part]) -> None:
    listeners: dict[Address, list[tuple[int, int, int, int]]] = {}
    ids: dict[Address, int] = {}
    for part in parts:
        rows = _listeners(part)
        for vip_id, vip in part.vips.items():
            ids[vip] = vip_id
            listeners.setdefault(vip, []).extend(rows)
    vips = sorted(ids, key=_halves)
    in_order = [ids[vip] for vip in vips]
    counts = np.array([len(listeners[vip]) for vip in vips])
    rows = [row for vip in vips for row in sorted(listeners[vip], key=_breadth)]
    snapshot.sizes[0] = len(vips)
    snapshot.vips[: len(vips)] = np.array([_halves(vip) for vip in vips], np.uint64)
    snapshot.vip_listeners[: len(vips)] = np.column_stack((counts.cumsum() - counts, counts, in_order))
    snapshot.vip_bytes[in_order] = _bytes(vips)
    snapshot.vip_rows[:] = -1
    snapshot.vip_rows[in_order] = np.arange(len(vips))
    snapshot.listeners[: len(rows)] = rows


def _fill_backends(snapshot: Snapshot, parts: Sequence[Part], usable: npt.NDArray[np.bool_]) -> None:
    rows = [(number, part.id, next(iter(part.vips))) for part in parts for number in part.backends]
    uses = Counter[Address]()
    for part in parts:
        for backend in part.backends.values():
            uses[backend.address] += len(part.vips)
    addresses = [backend.address for part in parts for backend in part.backends.values()]
    ids, services, vips = np.array(rows, np.int32).reshape(-1, 3).T
    shared = np.array([uses[address] > 1 for address in addresses], np.bool_)
    snapshot.backend_services[:] = -1
    snapshot.backend_services[ids] = services
    snapshot.backend_vips[:] = -1
    snapshot.backend_vips[ids] = vips
    snapshot.backend_flags[:] = 0
    snapshot.backend_flags[ids] = usable[ids] * USABLE + shared * SHARED
    snapshot.backend_bytes[ids] = _bytes(addresses)


def _fill_hosts(snapshot: Snapshot, parts: Sequence[Part]) -> None:
    members = sorted(
        (_halves(backend.address), number) for part in parts for number, backend in part.backends.items()
    )
    counts = Counter(halves for halves, _ in members)  # keeps the order
    hosts = len(counts)
    sizes = np.fromiter(counts.values(), np.int32, hosts)
    snapshot.sizes[1] = hosts
    snapshot.hosts[:hosts] = np.array(list(counts), np.uint64).reshape(-1, 2)
    snapshot.host_backends[:hosts] = np.column_stack((sizes.cumsum() - sizes, sizes))
    snapshot.members[: len(members)] = [number for _, number in members]


@lru_cache(maxsize=256)
def _slots(scheduler: str, weights: tuple[int, ...]) -> Slots:
    return SCHEDULERS[scheduler](np.array(weights, np.int64))


def _fill_services(snapshot: Snapshot, parts: Sequence[Part], weights: npt.NDArray[np.int64]) -> None:
    snapshot.services[:] = 0
    at = 0
    for part in parts:
        ids = np.fromiter(part.backends, np.uint16, len(part.backends))
        slots = ids[_slots(part.service.scheduler, tuple(weights[ids].tolist()))]
        snapshot.slots[at : at + slots.size] = slots
        snapshot.services[part.id] = (
            at,
            slots.size,
            part.service.tcp_idle_s,
            part.service.udp_idle_s,
            part.service.other_idle_s,
            part.service.forwarding == "conntrack",
        )
        at += slots.size
