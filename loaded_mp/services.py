"""What a configuration becomes: its names as the numbers by which workers know them.

Numbers outlive a configuration: the flow table and conntrack's marks hold them. Whoever takes a name out of
the configuration releases its number once no flow holds it any more.
"""

import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar
from zlib import crc32

import numpy as np

from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.fields import Address, Endpoint, addresses_of
from loaded_mp.memory.snapshot import (
    MAX_BACKENDS,
    MAX_LISTENERS,
    MAX_SERVICES,
    MAX_SLOTS,
    MAX_VIPS,
    MAX_WORKERS,
)
from loaded_mp.schedulers import scheduler_of
from loaded_mp.schedulers.scheduler import MAX_ROUND, RISE_STEPS

Family = Literal[4, 6]
Key = TypeVar("Key", bound=Hashable)

#: From here on Linux takes the ports of what a program begins (net.ipv4.ip_local_port_range).
_CHOSEN = 32_768

ServiceKey = tuple[str, Family]  #: name of the service
VipKey = tuple[str, Address]  #: name of the service
BackendKey = tuple[str, Endpoint]  #: name of the service


class TooLargeError(Exception):
    """A configuration needs more of something than workers have room for; the text says of what."""

    def __init__(self, what: str, needed: int, limit: int, advice: str) -> None:
        super().__init__(f"the configuration needs {needed:,} {what}, there is room for {limit:,}: {advice}")


@dataclass(frozen=True)
class Part:
    """One family of a service, which is what workers know as a service."""

    id: int
    family: Family
    service: Service
    vips: dict[int, Address]  #: by VIP id, the number of a VIP of this service
    backends: dict[int, Backend]  #: by backend id


@dataclass(frozen=True)
class Services:
    """A configuration in numbers."""

    config: Config
    parts: tuple[Part, ...]

    @cached_property
    def queues(self) -> range:
        """The numbers of the queues, one for each worker."""
        return queues_of(self.config)

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The families in which there are VIPs, in ascending order."""
        return tuple(sorted({part.family for part in self.parts}))

    @cached_property
    def by_name(self) -> dict[str, tuple[Part, ...]]:
        """The parts of each service, in the order of the configuration."""
        grouped: dict[str, tuple[Part, ...]] = {}
        for part in self.parts:
            grouped[part.service.name] = (*grouped.get(part.service.name, ()), part)
        return grouped

    @cached_property
    def by_id(self) -> dict[int, Part]:
        """The parts by their ids."""
        return {part.id: part for part in self.parts}

    @cached_property
    def part_of(self) -> dict[int, Part]:
        """The part of each backend id."""
        return {number: part for part in self.parts for number in part.backends}

    def key(self, number: int) -> BackendKey:
        """Who has a backend id."""
        part = self.part_of[number]
        return part.service.name, part.backends[number].address

    def of_family(self, family: Family) -> tuple[Part, ...]:
        """The parts of a family."""
        return tuple(part for part in self.parts if part.family == family)


def services_of(config: Config) -> Services:
    """A configuration in numbers that nothing has used before. Raises TooLargeError."""
    return Ids().expand(config)


def queues_of(config: Config) -> range:
    """The numbers of the queues that a configuration asks for, one for each worker."""
    return range(config.first_queue, config.first_queue + worker_count(config))


def worker_count(config: Config) -> int:
    """How many workers a configuration asks for; by default one for each core that we may use."""
    return config.workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def with_workers(config: Config, workers: int) -> Config:
    """The configuration with another number of workers."""
    return config.model_copy(update={"workers": workers})


class IdTable(Generic[Key]):
    """Numbers below `limit` for keys. A key keeps its number until it is released."""

    def __init__(self, what: str, limit: int, preferred: Callable[[Key], int] | None = None) -> None:
        """`preferred` is the number that a key gets if it is free; it may be any number."""
        self._what = what
        self._limit = limit
        self._preferred = preferred
        self._ids: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._retired: dict[int, None] = {}  #: in this order

    def require_room(self, keys: Iterable[Key]) -> None:
        """Raise TooLargeError unless every one of `keys` can have a number beside those that are held."""
        needed = len({key for number, key in self._keys.items() if number not in self._retired} | set(keys))
        if needed > self._limit:
            advice = "use fewer (those that a reload removed count until their flows are forgotten)"
            raise TooLargeError(self._what, needed, self._limit, advice)

    def id_of(self, key: Key) -> int:
        """The number of a key, a new one if it has none. See `require_room`."""
        if key in self._ids:
            self._retired.pop(self._ids[key], None)
        else:
            if len(self._keys) == self._limit:
                self.release(next(iter(self._retired)))
            number = (self._preferred(key) if self._preferred else len(self._ids)) % self._limit
            while number in self._keys:
                number = (number + 1) % self._limit
            self._ids[key], self._keys[number] = number, key
        return self._ids[key]

    def rename(self, before: Key, after: Key) -> None:
        """Let `after` have the number of `before`."""
        self._ids[after] = number = self._ids.pop(before)
        self._keys[number] = after

    def release(self, number: int) -> None:
        """Let a number be given to another key. Raises KeyError if nobody holds it."""
        del self._ids[self._keys.pop(number)]
        self._retired.pop(number, None)

    def retire(self, number: int) -> None:
        """Let a number be given to another key once there is no other one; until then its key holds it."""
        self._retired[number] = None

    def held(self) -> set[int]:
        """All numbers that are given out."""
        return set(self._keys)

    def items(self) -> list[tuple[Key, int]]:
        """All keys and their numbers."""
        return list(self._ids.items())

    def restore(self, items: Iterable[tuple[Key, int]]) -> None:
        """Give out the numbers that `items` of another table were given."""
        for key, number in items:
            self._ids[key], self._keys[number] = number, key


class Ids:
    """The ids of services, VIPs and backends."""

    def __init__(self) -> None:
        self.services: IdTable[ServiceKey] = IdTable("services (each family counts)", MAX_SERVICES)
        # Marks of connections outlive a daemon that lost its memory: a VIP should have its number again.
        self.vips: IdTable[VipKey] = IdTable("VIPs (one in two services is two)", MAX_VIPS, _hash)
        self.backends: IdTable[BackendKey] = IdTable("backends (one in two services is two)", MAX_BACKENDS)

    def expand(self, config: Config, before: Services | None = None) -> Services:
        """A configuration in numbers. Raises TooLargeError, and then changes nothing.

        A family in which a service has no VIP is left out. A service that was in `before` under another name
        keeps its numbers.
        """
        number = sum(addresses_of(vip).num_addresses for service in config.services for vip in service.vips)
        if number > MAX_VIPS:
            advice = "use smaller networks as VIPs, or several balancers"
            raise TooLargeError("VIPs, each address of a network counts", number, MAX_VIPS, advice)
        families = [
            (service, family, vips, [each for each in service.backends if each.address.version == family])
            for service in config.services
            for family in _FAMILIES
            if (vips := _vips(service, family))
        ]
        self.services.require_room((service.name, family) for service, family, _, _ in families)
        self.vips.require_room((service.name, vip) for service, _, vips, _ in families for vip in vips)
        self.backends.require_room(
            (s.name, each.address) for s, _, _, backends in families for each in backends
        )
        listeners = sum(len(vips) * max(1, len(service.listen)) for service, _, vips, _ in families)
        if listeners > MAX_LISTENERS:
            advice = "use port ranges or fewer entries in listen"
            raise TooLargeError("listeners on its VIPs", listeners, MAX_LISTENERS, advice)
        slots = sum(
            most_slots(service, [each.weight for each in backends]) for service, _, _, backends in families
        )
        if slots > MAX_SLOTS:
            raise TooLargeError(
                "scheduler slots", slots, MAX_SLOTS, "use smaller weights of the same proportion"
            )
        if before:
            self._rename(before.config, config)
        parts = tuple(
            Part(
                self.services.id_of((service.name, family)),
                family,
                service,
                {self.vips.id_of((service.name, vip)): vip for vip in vips},
                {self.backends.id_of((service.name, each.address)): each for each in backends},
            )
            for service, family, vips, backends in families
        )
        return Services(config, parts)

    def _rename(self, before: Config, after: Config) -> None:
        """What has the same VIPs and listeners as a service that is gone is that service."""

        def place(service: Service) -> Hashable:
            return frozenset(map(addresses_of, service.vips)), frozenset(service.listen)

        old, new = ({service.name for service in each.services} for each in (before, after))
        gone = {place(service): service.name for service in before.services if service.name not in new}
        for service in after.services:
            if service.name in old or not (name := gone.pop(place(service), "")):
                continue
            for (held, family), _ in self.services.items():
                if held == name:
                    self.services.rename((name, family), (service.name, family))
            for (held, vip), _ in self.vips.items():
                if held == name:
                    self.vips.rename((name, vip), (service.name, vip))
            for (held, endpoint), _ in self.backends.items():
                if held == name:
                    self.backends.rename((name, endpoint), (service.name, endpoint))


_FAMILIES: tuple[Family, ...] = (4, 6)


def _vips(service: Service, family: Family) -> list[Address]:
    mine = (addresses_of(vip) for vip in service.vips if vip.version == family)
    return list(dict.fromkeys(address for network in mine for address in network))


def _hash(key: VipKey) -> int:
    """The same in every process."""
    name, vip = key
    return crc32(name.encode() + vip.packed)


def most_slots(service: Service, weights: list[int]) -> int:
    """How many slots a service takes at the most for these weights, also while some are 0 or rise."""
    behind = len(weights) if service.limits_flows else 0
    if scheduler_of(service.scheduler).fills_table:
        return max(service.table_size, len(weights)) + behind
    steps = RISE_STEPS if service.slow_start_s else 1
    divisor = 1 if service.slow_start_s else max(1, int(np.gcd.reduce(weights or [1])))
    return max(len(weights), min(steps * sum(weights) // divisor, MAX_ROUND)) + behind


def may_begin_anything(service: Service) -> bool:
    """Whether its backends may begin something over UDP from a port on which it listens."""
    return not service.listen or any(
        each.protocol == "mark" or (each.protocol == "udp" and each.first_port < each.last_port >= _CHOSEN)
        for each in service.listen
    )
