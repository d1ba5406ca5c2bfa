"""Building snapshots: from services and the states of their backends to what workers read."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from loaded_mp.config.model import Tunnel
from loaded_mp.datapath.index import make_index
from loaded_mp.fields import Address, Endpoint, Ports
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.memory.snapshot import NO_LIMIT, Affinity, Flag, PortColumn, ServiceColumn, Snapshot
from loaded_mp.packet.address import address128
from loaded_mp.schedulers import scheduler_of
from loaded_mp.schedulers.scheduler import Candidates, Slots
from loaded_mp.services import Family, Part, may_begin_anything
from loaded_mp.supervisor.affinities import Numbered, Succession, as_asked
from loaded_mp.supervisor.service_state import weights
from loaded_mp.supervisor.state import BackendState

_ANY_PROTOCOL, _ALL_PORTS = 0, Ports(0, 65_535)

#: Slots that the operator's schedulers gave, uint16[n], backend ids, by service id.
Tables = Mapping[int, Slots]
_NO_SLOTS = np.empty(0, np.uint16)


@dataclass(frozen=True)
class Past:
    """What was before, as far as it still counts."""

    affinities: Mapping[int, Succession] = field(default_factory=dict)  #: by service id
    held: Collection[int] = ()  #: service ids
    vips: Mapping[int, Address] = field(default_factory=dict)  #: of services that are gone, by VIP id
    tables: Tables = field(default_factory=dict)


_NO_PAST = Past()


def fill(
    snapshot: Snapshot, parts: Sequence[Part], states: Mapping[int, BackendState], past: Past = _NO_PAST
) -> None:
    """Write a whole buffer that nobody reads; `states` are by backend id."""
    _fill_vips(snapshot, parts, past.vips)
    _fill_backends(snapshot, parts, states, past.held)
    _fill_addresses(snapshot, parts)
    _fill_services(snapshot, parts, past.affinities, past.tables)


def slots_of(snapshot: Snapshot, service: int) -> Slots:
    """The slots of a service id: backend ids."""
    row = snapshot.services[service]
    first = row[ServiceColumn.SLOTS_AT]
    slots: Slots = snapshot.slots[first : first + row[ServiceColumn.SLOTS]]
    return slots


def _bytes(addresses: Sequence[Address]) -> npt.NDArray[np.uint8]:
    """Addresses in network byte order, uint8[n, 16]."""
    packed = b"".join(address.packed.ljust(16, b"\0") for address in addresses)
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


#: In the order of ListenerColumn.
_Listener = tuple[int, int, int, int, int, int]


def _listeners(part: Part, vip_id: int) -> list[_Listener]:
    """The rows of `listeners` that a part puts on one of its VIPs."""
    return [
        (each.iana(part.family), each.first_port, each.last_port, part.id, vip_id, each.mark)
        for each in part.service.listen
    ] or [(_ANY_PROTOCOL, *_ALL_PORTS, part.id, vip_id, 0)]


def _breadth(listener: _Listener) -> tuple[bool, bool, int]:
    """Sorts marks first and the specific before what catches all, as the first listener that fits counts."""
    protocol, first_port, last_port, _, _, mark = listener
    return not mark, protocol == _ANY_PROTOCOL, last_port - first_port


def _fill_vips(snapshot: Snapshot, parts: Sequence[Part], left: Mapping[int, Address]) -> None:
    listeners: dict[Address, list[_Listener]] = {}
    for part in parts:
        for vip_id, vip in part.vips.items():
            listeners.setdefault(vip, []).extend(_listeners(part, vip_id))
    vips = list(listeners)
    counts = np.array([len(listeners[vip]) for vip in vips])
    rows = [row for vip in vips for row in sorted(listeners[vip], key=_breadth)]
    snapshot.vips[: len(vips)] = np.array([address128(vip) for vip in vips], np.uint64)
    snapshot.seeds[0] = make_index(snapshot.vip_index, snapshot.vips[: len(vips)])
    snapshot.vip_listeners[: len(vips)] = np.column_stack((counts.cumsum() - counts, counts))
    snapshot.listeners[: len(rows)] = rows
    ids = {vip_id: vip for vip_id, vip in left.items() if vip in listeners}
    ids |= {vip_id: vip for part in parts for vip_id, vip in part.vips.items()}
    row_of = {vip: row for row, vip in enumerate(vips)}
    snapshot.vip_bytes[list(ids)] = _bytes(list(ids.values()))
    snapshot.vip_rows[:] = -1
    snapshot.vip_rows[list(ids)] = [row_of[vip] for vip in ids.values()]
    snapshot.vip_services[:] = -1
    for part in parts:
        snapshot.vip_services[list(part.vips)] = part.id


def _fill_backends(
    snapshot: Snapshot, parts: Sequence[Part], states: Mapping[int, BackendState], held: Collection[int]
) -> None:
    rows = [
        (
            number,
            part.id,
            next(iter(part.vips)),
            states[number].flags(part.service.on_down)
            | (Flag.SEVERAL if len(part.vips) > 1 else 0)
            | (Flag.HELD if part.id in held else 0)
            | (Flag.ANYTHING if may_begin_anything(part.service) else 0),
            weight,
            *(part.backends[number].limits or (NO_LIMIT, NO_LIMIT)),
        )
        for part in parts
        for number, weight in zip(part.backends, _shares(part, states), strict=True)
    ]
    endpoints = [backend.address for part in parts for backend in part.backends.values()]
    ports = [each for part in parts for each in _ports(part)]
    ids, services, vips, flags, effective, *limits = np.array(rows, np.int64).reshape(-1, 7).T
    snapshot.backend_services[:] = -1
    snapshot.backend_services[ids] = services
    snapshot.backend_vips[:] = -1
    snapshot.backend_vips[ids] = vips
    snapshot.backend_flags[:] = 0
    snapshot.backend_flags[ids] = flags
    snapshot.backend_weights[:] = 0
    snapshot.backend_weights[ids] = effective
    snapshot.backend_limits[ids] = np.column_stack(limits)
    snapshot.backend_bytes[ids] = _bytes([endpoint.ip for endpoint in endpoints])
    snapshot.backend_ports[ids] = np.array(ports, np.int64).reshape(-1, len(PortColumn))


def _ports(part: Part) -> Iterator[tuple[int, int, int, int, int]]:
    """The rows of `backend_ports` of a part. Where no backend has a port of its own, all are theirs."""
    own = [backend.address.port for backend in part.backends.values()]
    asked_for = (part.service.ports if any(own) else None) or _ALL_PORTS
    listen = (each.ports or _ALL_PORTS for each in part.service.listen if each.protocol != "icmp")
    first, last = zip(*(list(listen) or [_ALL_PORTS]), strict=True)
    for port in own:
        mine = asked_for.at(port)
        shift = mine.first - asked_for.first
        yield *mine, shift, min(first) + shift, max(last) + shift


def _shares(part: Part, states: Mapping[int, BackendState]) -> list[int]:
    """The effective weights of a part's backends; those that stop get no new flows while others go on."""
    stops = [bool(states[number].stops) for number in part.backends]
    if all(stops):
        return weights(part, states)
    return [0 if stop else weight for stop, weight in zip(stops, weights(part, states), strict=True)]


def _fill_addresses(snapshot: Snapshot, parts: Sequence[Part]) -> None:
    members = sorted(
        (address128(backend.address.ip), number)
        for part in parts
        for number, backend in part.backends.items()
    )
    counts = Counter(address for address, _ in members)  # keeps the order
    addresses = len(counts)
    sizes = np.fromiter(counts.values(), np.int64, addresses)
    snapshot.addresses[:addresses] = np.array(list(counts), np.uint64).reshape(-1, 2)
    snapshot.seeds[1] = make_index(snapshot.address_index, snapshot.addresses[:addresses])
    snapshot.address_members[:addresses] = np.column_stack((sizes.cumsum() - sizes, sizes))
    snapshot.members[: len(members)] = [number for _, number in members]


def _fill_services(
    snapshot: Snapshot, parts: Sequence[Part], affinities: Mapping[int, Succession], tables: Tables
) -> None:
    """Needs the weights of the backends there already."""
    snapshot.services[:] = 0
    at = 0
    for part in parts:
        service, scheduler = part.service, scheduler_of(part.service.scheduler)
        ids = np.fromiter(part.backends, np.uint16, len(part.backends))
        keys = tuple(_key(backend.address) for backend in part.backends.values())
        shares = tuple(snapshot.backend_weights[ids].tolist())
        slots = _own_slots(snapshot, part, tables)
        if not slots.size:
            slots = ids[_slots(service.scheduler, shares, keys, service.table_size)]
        behind = ids[np.flatnonzero(shares)] if service.limits_flows else ids[:0]
        taken = np.concatenate((slots, behind))
        *before, now = affinities.get(part.id, (Numbered(0, service.affinity),))
        rows = [_affinity(part.family, each) for each in (now, *as_asked(before))]
        snapshot.affinities[part.id, : len(rows)] = rows
        snapshot.slots[at : at + taken.size] = taken
        snapshot.services[part.id] = (
            at,
            slots.size,
            service.tcp_idle_s,
            service.udp_idle_s,
            service.other_idle_s,
            service.unconfirmed_s,
            FORWARDINGS[service.forwarding].answer,
            scheduler.pick,
            scheduler.plus,
            scheduler.weighted,
            len(before),
            service.tcp_fin_idle_s,
            service.all_down == "reject",
            behind.size,
            *_tunnel(part.family, service.tunnel),
        )
        at += taken.size


def _own_slots(snapshot: Snapshot, part: Part, tables: Tables) -> Slots:
    """What the operator's scheduler gave a part, as far as that may have new flows now."""
    slots = tables.get(part.id, _NO_SLOTS)
    of_it = (snapshot.backend_services[slots] == part.id) & (snapshot.backend_weights[slots] > 0)
    taking: Slots = slots[of_it]
    return taking


def _affinity(family: Family, numbered: Numbered) -> tuple[int, int, int, int, int]:
    """In the order of AffinityColumn."""
    number, affinity = numbered
    bits = affinity.prefix(family) + (96 if family == 4 else 0)
    mask = (1 << 128) - (1 << (128 - bits))
    high, low = np.array([mask >> 64, mask & (1 << 64) - 1], np.uint64).astype(np.int64).tolist()
    kind = Affinity[affinity.kind.upper()]
    return kind, high, low, number, -1 if kind == Affinity.CONNECTION else 0


def _tunnel(family: Family, tunnel: Tunnel) -> tuple[int, int, int, int]:
    """UDP port, both halves of the first source address and the bits of others, as int64."""
    network = next(each for each in tunnel.sources if each.version == family)
    spread = network.num_addresses - 1
    numbers = np.array([*address128(network.network_address), spread], np.uint64).astype(np.int64)
    high, low, bits = numbers.tolist()
    return tunnel.port if tunnel.kind == "gue" else 0, high, low, bits


def _key(endpoint: Endpoint) -> int:
    """A number of 64 bits that an endpoint has everywhere."""
    port = b"" if endpoint.port is None else endpoint.port.to_bytes(2)
    return int.from_bytes(hashlib.blake2b(endpoint.ip.packed + port, digest_size=8).digest())


@lru_cache(maxsize=256)
def _slots(scheduler: str, weights: tuple[int, ...], keys: tuple[int, ...], table_size: int) -> Slots:
    candidates = Candidates(np.array(weights, np.int64), np.array(keys, np.uint64), table_size)
    return scheduler_of(scheduler).slots(candidates)
