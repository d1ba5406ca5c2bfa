"""What contradicts itself in a configuration.

This looks at data that is not checked yet, so that contradictions are reported together with values that are
wrong by themselves. A wrong value takes no part here, and nothing is called absent that may only be misspelt.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, TypeVar

from loaded_mp.checks import CHECKS
from loaded_mp.checks.check import PortCheck
from loaded_mp.fields import (
    LAST_PORT,
    Address,
    Endpoint,
    Interface,
    Listener,
    Ports,
    addresses_of,
    port_range,
)
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.memory.snapshot import MAX_VIPS

Contradiction = tuple[tuple[str | int, ...], str]
T = TypeVar("T")
Who = TypeVar("Who")


@dataclass(frozen=True)
class _Service:
    """What could be read of a service."""

    number: int
    name: str
    vips: dict[int, Interface]  #: by their row
    listen: tuple[Listener, ...] | None  #: None: it could not be read
    backends: dict[int, Endpoint]  #: by their row
    checks: list[tuple[tuple[str | int, ...], dict[str, Any]]]  #: with their places in the service
    forwarding: str  #: empty: what is the default, or could not be read
    idle: bool  #: no backend has a weight, and nobody said so
    whole: bool  #: every VIP and backend could be read
    discovers: bool  #: backends may come later


def contradictions(data: dict[str, Any]) -> Iterator[Contradiction]:
    """All of them, each with the location in the shape of Config that it is best reported at."""
    yield from _numbers(data)
    yield from _discovery(data)
    services = [_service(number, table) for number, table in tables(data.get("services"))]
    backends = {backend.ip for service in services for backend in service.backends.values()}
    names: set[str] = set()
    answering: dict[Address, list[_Service]] = {}  #: by VIP, the services so far
    for service in services:
        here = ("services", service.number)
        if service.name and service.name in names:
            yield (*here, "name"), f"found {service.name!r} twice, expected a name of its own"
        names.add(service.name)
        yield from _within(service)
        for row, vip in service.vips.items():
            mine = _addresses(vip)
            if taken := next((each for each in mine if each in backends), None):
                yield (*here, "vips", row), f"{taken} is a backend too, expected an address of its own"
            others = {id(each): (each, vip) for vip in mine for each in answering.get(vip, ())}
            for other, address in others.values():
                if other is not service and _overlap(service.listen, other.listen):
                    text = f"{address} is answered by service {other.name!r} already, expected other ports"
                    yield (*here, "vips", row), text
                    break
            for address in mine:
                answering.setdefault(address, []).append(service)


def _read(read: Callable[[Any], T], value: object) -> T | None:
    try:
        return read(value)
    except (ValueError, TypeError):
        return None


def _address(read: Callable[[Any], T], value: object) -> T | None:
    """Numbers are addresses for the ipaddress module, but not in a configuration; nor is what has a %."""
    return _read(read, value) if isinstance(value, str) and "%" not in value else None


def tables(value: object) -> list[tuple[int, dict[str, Any]]]:
    """What of a list are tables, each with its row."""
    return [(row, each) for row, each in enumerate(_list(value)) if isinstance(each, dict)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _service(number: int, table: dict[str, Any]) -> _Service:
    vips = {row: _address(ip_interface, each) for row, each in enumerate(_list(table.get("vips")))}
    rows = tables(table.get("backends"))
    backends = {row: _address(Endpoint.read, each.get("address")) for row, each in rows}
    listen = [_read(Listener.model_validate, each) for each in _list(table.get("listen", []))]
    return _Service(
        number,
        name if isinstance(name := table.get("name"), str) else "",
        {row: vip for row, vip in vips.items() if vip},
        tuple(each for each in listen if each) if all(listen) else None,
        {row: backend for row, backend in backends.items() if backend},
        _checks(table.get("checks")),
        forwarding if isinstance(forwarding := table.get("forwarding"), str) else "",
        bool(rows) and all(each.get("weight") == 0 for _, each in rows) and not table.get("all_zero"),
        bool(vips and backends) and all(vips.values()) and all(backends.values()),
        isinstance(table.get("discovery"), dict),
    )


def _checks(value: object) -> list[tuple[tuple[str | int, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        return [(("checks",), value)]
    return [(("checks", row), each) for row, each in tables(value)]


def _discovery(data: dict[str, Any]) -> Iterator[Contradiction]:
    network = data.get("network", {})
    if not isinstance(network, dict):
        return
    for number, table in tables(data.get("services")):
        discovery = table.get("discovery")
        if not isinstance(discovery, dict):
            continue
        here = ("services", number, "discovery")
        if not table.get("checks"):
            yield here, "expected a check beside it: who answers an echo need not serve"
        if not network.get("private_interface"):
            yield here, "expected network.private_interface beside it: where machines are looked for"
        if not (discovery.get("networks") or network.get("backend_networks")):
            yield here, "expected networks in it, or network.backend_networks: which machines may join"


def _numbers(data: dict[str, Any]) -> Iterator[Contradiction]:
    first_core, last_core = (_read(int, data.get(name)) for name in ("first_core", "last_core"))
    if last_core is not None and data.get("first_core") is None:
        yield ("last_core",), "expected the first core beside it"
    if first_core is not None and last_core is not None and last_core < first_core:
        yield ("last_core",), f"found {last_core}, expected {first_core} or more, the first core"
    first_queue, workers = (_read(int, data.get(name)) for name in ("first_queue", "workers"))
    if (first_queue or 0) <= 65_535 < (first_queue or 0) + (workers or 1) - 1:
        yield ("first_queue",), "queue numbers end at 65535: expected fewer workers or a lower first queue"


def _addresses(vip: Interface) -> list[Address]:
    """Those that a VIP stands for; none if they are too many, which is said of the value itself."""
    mine = addresses_of(vip)
    return list(mine) if mine.num_addresses <= MAX_VIPS else []


def _odd(address: Address) -> str:
    """Why an address cannot be a VIP or a backend, or nothing."""
    for name in ("multicast", "unspecified", "loopback"):
        if getattr(address, f"is_{name}"):
            return f"found the {name} address {address}, expected one of a single machine"
    return ""


def _within(service: _Service) -> Iterator[Contradiction]:
    here = ("services", service.number)
    if service.idle:
        yield (
            (*here, "backends"),
            "found no weight above 0, expected one (in TOML all_zero = true lets all be 0)",
        )
    served = {backend.version for backend in service.backends.values()}
    offered = {vip.version for vip in service.vips.values()}
    seen: set[Address] = set()
    for row, vip in service.vips.items():
        place: tuple[str | int, ...] = (*here, "vips", row)
        if text := _odd(vip.ip):
            yield place, text
        if service.whole and vip.version not in served and not service.discovers:
            yield place, f"no backend has an IPv{vip.version} address, expected one for {vip.ip}"
        mine = _addresses(vip)
        if twice := next((each for each in mine if each in seen), None):
            yield place, f"found {twice} twice, expected it once"
        seen.update(mine)
    for row, backend in service.backends.items():
        place = (*here, "backends", row, "address")
        if text := _odd(backend.ip):
            yield place, text
        if service.whole and backend.version not in offered:
            yield place, f"no VIP has an IPv{backend.version} address, expected one for {backend}"
    if service.listen is not None:
        for row, text in misfits(service.listen, service.forwarding, service.backends.items()):
            yield (*here, "backends", row, "address"), text
        for where, check in service.checks:
            if _lacks_a_port(check) and port_range(service.listen) is None:
                yield (*here, *where, "port"), "missing, expected a port, as listen does not name just one"


def misfits(
    listen: Sequence[Listener], forwarding: str, backends: Iterable[tuple[Who, Endpoint]]
) -> Iterator[tuple[Who, str]]:
    """Backends of a service whose ports fit neither it nor each other; and why."""
    ports = port_range(listen)
    ports_stay = forwarding in FORWARDINGS and FORWARDINGS[forwarding].ports_stay
    seen: dict[Address, list[int]] = {}  #: the first ports, in ascending order
    for who, backend in backends:
        if backend.port is not None and ports is None:
            yield (
                who,
                f"found the port {backend.port}, expected listen to name one port or range of tcp or udp",
            )
            continue
        if ports_stay and ports and backend.port not in (None, ports.first):
            yield (
                who,
                f'found the port {backend.port}, expected none: with forwarding = "{forwarding}" a backend'
                " answers on the port that the client asks for",
            )
        mine = (ports or Ports(0, 0)).at(backend.port)
        if mine.last > LAST_PORT:
            yield who, f"found {backend}, expected as many ports from {backend.port} on as listen names"
        there = seen.setdefault(backend.ip, [])
        place = bisect(there, mine.first)
        if mine.first in there[max(0, place - 1) : place]:
            yield who, f"found {backend} twice in the service, expected it once (use weight)"
        elif any(
            abs(mine.first - each) <= mine.last - mine.first for each in there[max(0, place - 1) : place + 1]
        ):
            yield who, f"found {backend}, which has ports of another backend, expected others"
        there.insert(place, mine.first)


def _lacks_a_port(check: dict[str, Any]) -> bool:
    kind = check.get("type", CHECKS[0].model_fields["type"].default)
    model = next((each for each in CHECKS if each.model_fields["type"].default == kind), None)
    return (
        model is not None
        and issubclass(model, PortCheck)
        and model.usual_port is None
        and check.get("port") is None
    )


def _overlap(one: tuple[Listener, ...] | None, other: tuple[Listener, ...] | None) -> bool:
    """Whether two services on the same VIP would both answer something; a catch-all gives way."""
    if one is None or other is None:
        return False
    if not one or not other:
        return not one and not other
    return any(
        (a.protocol, a.number) == (b.protocol, b.number)
        and a.first_port <= b.last_port
        and b.first_port <= a.last_port
        for a in one
        for b in other
    )
