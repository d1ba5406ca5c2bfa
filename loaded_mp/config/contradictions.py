"""What is wrong with a configuration whose single values are all right."""

from collections.abc import Iterator
from ipaddress import IPv6Address

from loaded_mp.config.model import Address, Config, Listener, Service

Contradiction = tuple[tuple[str | int, ...], str]


def contradictions(config: Config) -> Iterator[Contradiction]:
    """All of them, each with the location in the model that it is best reported at."""
    if (config.first_core, config.last_core) != (None, None):
        if config.first_core is None:
            yield ("last_core",), "expected first_core beside it"
        elif config.last_core is not None and config.last_core < config.first_core:
            yield (
                ("last_core",),
                f"found {config.last_core}, expected first_core ({config.first_core}) or more",
            )
    if config.first_queue + (config.workers or 1) > 65_536:
        yield ("first_queue",), "queue numbers end at 65535: expected fewer workers or a lower first_queue"
    names: set[str] = set()
    for number, service in enumerate(config.services):
        if service.name in names:
            yield ("services", number, "name"), f"found {service.name!r} twice, expected a name of its own"
        names.add(service.name)
        yield from _within(number, service)
    yield from _between(config)


def _odd(address: Address) -> str:
    """Why an address cannot be a VIP or a backend, or nothing."""
    if isinstance(address, IPv6Address) and address.scope_id:
        return f"found the scope %{address.scope_id}, expected an address that is the same on every interface"
    for name in ("multicast", "unspecified", "loopback"):
        if getattr(address, f"is_{name}"):
            return f"found the {name} address {address}, expected one of a single machine"
    return ""


def _within(number: int, service: Service) -> Iterator[Contradiction]:
    here = ("services", number)
    for row, vip in enumerate(service.vips):
        if text := _odd(vip.ip):
            yield (*here, "vips", row), text
        if not any(backend.address.version == vip.version for backend in service.backends):
            yield (
                (*here, "vips", row),
                f"no backend has an IPv{vip.version} address, expected one for {vip.ip}",
            )
    seen: set[Address] = set()
    for row, backend in enumerate(service.backends):
        place = (*here, "backends", row, "address")
        if text := _odd(backend.address):
            yield place, text
        if backend.address in seen:
            yield place, f"found {backend.address} twice in the service, expected it once (use weight)"
        seen.add(backend.address)
        if not any(vip.version == backend.address.version for vip in service.vips):
            family = backend.address.version
            yield place, f"no VIP has an IPv{family} address, expected one for {backend.address}"


def _overlap(one: tuple[Listener, ...], other: tuple[Listener, ...]) -> bool:
    """Whether two services on the same VIP would both answer something; a catch-all gives way."""
    if not one or not other:
        return not one and not other
    return any(
        a.protocol == b.protocol and a.first_port <= b.last_port and b.first_port <= a.last_port
        for a in one
        for b in other
    )


def _between(config: Config) -> Iterator[Contradiction]:
    backends = {backend.address for service in config.services for backend in service.backends}
    for number, service in enumerate(config.services):
        for row, vip in enumerate(service.vips):
            place = ("services", number, "vips", row)
            if vip.ip in backends:
                yield place, f"{vip.ip} is a backend too, expected an address of its own"
            for other in config.services[:number]:
                if vip.ip in {each.ip for each in other.vips} and _overlap(service.listen, other.listen):
                    yield (
                        place,
                        f"{vip.ip} is answered by service {other.name!r} already, expected other ports",
                    )
            if vip.ip in {each.ip for each in service.vips[:row]}:
                yield place, f"found {vip.ip} twice, expected it once"
