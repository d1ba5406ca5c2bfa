"""What has to change on this machine so that a configuration works on it. No I/O.

The order is that in which the changes are made: the rules stand before the VIPs, so that the host's
own TCP never answers for one.

rp_filter is left alone, also where it is strict (1): requests are rewritten before and replies after
routing, so that the filter sees clients and backends on the interfaces on which they live.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from loaded_mp.config.model import OPEN, Config
from loaded_mp.fields import Address, Endpoint, Interface, Listener, Network, addresses_of
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Chain, Side
from loaded_mp.memory.marks import REJECTED
from loaded_mp.network.changes import (
    AddAddress,
    AddChain,
    AddLocalRoute,
    AddRoute,
    Change,
    SetLinkUp,
    SetSysctl,
)
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Host
from loaded_mp.network.rules import LONGEST_PACKET, NO_REDIRECTS, hairpin, masquerade, queue_target, rejected
from loaded_mp.services import Family, Part, Services, may_begin_anything

_IP_FORWARD = "net/ipv4/ip_forward"
_IP6_FORWARD = "net/ipv6/conf/all/forwarding"
_ECHO_BROADCASTS = "net/ipv4/icmp_echo_ignore_broadcasts"


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are made, and what people should know of them."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def script(self) -> str:
        """The plan as a shell script; the changes stand below the reason for them."""
        lines = [f"# Note: {note}" for note in self.notes]
        why = ""
        for change in self.changes:
            if change.why != why:
                why = change.why
                lines += ["", f"# {why}"]
            lines.append(change.command)
        return "\n".join(lines).strip() or "# Nothing has to be changed."


def plan(services: Services, host: Host) -> Plan:
    """The changes that `host` needs for the services.

    Raises NetworkError if an interface of the configuration does not exist.
    """
    config = services.config
    for key, name in (
        ("network.public_interface", config.network.public_interface),
        ("network.private_interface", config.network.private_interface),
    ):
        if name is not None and name not in host.links:
            raise NetworkError(
                f"{key}: this host has no interface {name!r}; it has {', '.join(sorted(host.links))}"
            )
    addresses = _addresses(config, host)
    routes = _routes(services, host, addresses)
    _require_on_link(services, host, [*addresses, *routes])
    _require_foreign_sources(services, host)
    _require_backends_apart(services, host)
    changes: list[Change] = [
        *_interfaces_up(config, host),
        *_sysctls(services, host),
        *(address for address in addresses if not address.vip),
        *routes,
        *(chain for family in services.families for chain in _chains(services, host, family)),
        *(address for address in addresses if address.vip),
        *_local_routes(config, host),
    ]
    return Plan(tuple(changes), tuple(_notes(services, host)))


def no_fast_path(config: Config) -> str:
    """Why a configuration has no fast path; empty: it has one."""
    if config.fast_path == "off":
        return 'fast_path = "off"'
    if not any(service.forwarding == "rewrite" for service in config.services):
        return "no service is forwarded by rewriting"
    if not config.network.public_interface or not config.network.private_interface:
        return "network.public_interface and network.private_interface are not both named"
    return ""


def not_redirected(services: Services) -> dict[str, str]:
    """Of services that go the way of fast_path = "auto" although it is "redirect": why, by name."""
    if services.config.fast_path != "redirect":
        return {}
    return {
        name: why
        for name, parts in services.by_name.items()
        if parts[0].service.forwarding == "rewrite" and (why := _why_not_redirected(parts))
    }


def _why_not_redirected(parts: Sequence[Part]) -> str:
    """Why nothing tells which VIP a service's replies come from, if from any; empty: it is told."""
    if any(len(part.vips) > 1 for part in parts):
        return "it has several VIPs of a family"
    if may_begin_anything(parts[0].service):
        return "its backends may begin something over UDP (say to which ports it listens, below 32,768)"
    return ""


def kept(services: Services, host: Host) -> tuple[Change, ...]:
    """What is put back when others undo it: the changes, and settings that were as they have to be already.

    An address that was there is none of these: who put it there may take it away, and to another machine.
    """
    changes = plan(services, host).changes
    made = {change.command for change in changes}
    unset = replace(host, sysctls=dict.fromkeys(host.sysctls, ""))
    others = (change for change in plan(services, unset).changes if isinstance(change, SetSysctl))
    return (*changes, *(change for change in others if change.command not in made))


def _backend_networks(services: Services, family: Family) -> tuple[Network, ...]:
    """The networks of the configuration, and each backend outside of them by itself."""
    given = [each for each in services.config.network.backend_networks if each.version == family]
    alone = [
        ip_network(backend.ip)
        for backend in _backends(services.of_family(family)).values()
        if not any(backend.ip in network for network in given)
    ]
    return tuple(dict.fromkeys((*given, *alone)))


def _backends(parts: Sequence[Part]) -> dict[int, Endpoint]:
    return {number: backend.address for part in parts for number, backend in part.backends.items()}


def _interfaces(config: Config) -> list[str]:
    named = (config.network.public_interface, config.network.private_interface)
    return list(dict.fromkeys(name for name in named if name))


def _interfaces_up(config: Config, host: Host) -> list[SetLinkUp]:
    return [
        SetLinkUp(link=name, why="the interface is down")
        for name in _interfaces(config)
        if not host.links[name].up
    ]


def _addresses(config: Config, host: Host) -> list[AddAddress]:
    """Those that the host does not have yet; the public ones first, so that they are the primary ones."""
    network = config.network
    present = {address.ip for _, address in host.addresses}
    wanted: list[AddAddress] = []
    if network.private_interface:
        for address in network.private_addresses:
            at_broadcast = network.broadcast and network.broadcast in address.network
            wanted.append(
                AddAddress(
                    link=network.private_interface,
                    address=address,
                    broadcast=network.broadcast if at_broadcast else None,
                    why="gateway of the backends",
                )
            )
    if network.public_interface:
        for address in network.public_addresses:
            wanted.append(
                AddAddress(
                    link=network.public_interface, address=address, why="public address of the balancer"
                )
            )
        for service in config.services:
            for vip in (each for each in service.vips if addresses_of(each).num_addresses == 1):
                wanted.append(
                    AddAddress(
                        link=network.public_interface,
                        address=vip,
                        vip=True,
                        why=f"VIP of the service {service.name}",
                    )
                )
    first = {change.address.ip: change for change in reversed(wanted)}
    return [
        change for change in wanted if change.address.ip not in present and first[change.address.ip] is change
    ]


def _local_routes(config: Config, host: Host) -> list[AddLocalRoute]:
    """For networks as VIPs, whose addresses are put on no interface."""
    link = config.network.public_interface
    return [
        AddLocalRoute(link=link, network=network, why=f"VIPs of the service {name}")
        for network, name in _vip_networks(config).items()
        if link and network not in host.local
    ]


def _vip_networks(config: Config) -> dict[Network, str]:
    """Networks as VIPs, each with the name of a service."""
    found: dict[Network, str] = {}
    for service in config.services:
        for network in map(addresses_of, service.vips):
            if network.num_addresses > 1:
                found.setdefault(network, service.name)
    return found


def _routes(services: Services, host: Host, added: Sequence[AddAddress]) -> list[AddRoute]:
    """Where neither a route (the default does not count) nor an address leads there."""
    network = services.config.network
    reached = [*host.routes, *(address.network for _, address in host.addresses)]
    reached += [change.address.network for change in added]
    wanted = [
        (link, there, why)
        for family in services.families
        for link, networks, why in (
            (
                network.private_interface,
                _backend_networks(services, family),
                "the backends are on this interface",
            ),
            (
                network.public_interface,
                _sources(services.of_family(family), family),
                "rp_filter lets packets of tunnels pass, as if they came from there",
            ),
        )
        for there in networks
    ]
    return [
        AddRoute(link=link, network=there, why=why)
        for link, there, why in wanted
        if link and not any(_covers(route, there) for route in reached)
    ]


def _require_foreign_sources(services: Services, host: Host) -> None:
    """Raise NetworkError if a source of tunnels' packets is an address of this host."""
    for family in services.families:
        for network in _sources(services.of_family(family), family):
            for own in _own_addresses(services, host, family):
                if own.ip in network:
                    raise NetworkError(
                        f"tunnel.sources: {network} holds {own.ip} of this host, as which the kernel forwards"
                        " nothing; name a network that nobody has"
                    )


def _covers(route: Network, network: Network) -> bool:
    return (
        route.version == network.version
        and 0 < route.prefixlen <= network.prefixlen
        and network.network_address in route
    )


def _require_backends_apart(services: Services, host: Host) -> None:
    """Raise NetworkError if what is redirected could need another source address (see `hairpin`)."""
    public = services.config.network.public_interface
    own = [address for link, address in host.addresses if link == public]
    networks = [address.network for address in (*own, *services.config.network.public_addresses)]
    for part in services.parts if services.config.fast_path == "redirect" else ():
        for backend in part.backends.values():
            if any(backend.address.ip in network for network in networks):
                raise NetworkError(
                    f"service {part.service.name}: backend {backend.address.ip} is on the link of {public};"
                    ' with fast_path = "redirect" backends have to be behind network.private_interface'
                )


def _require_on_link(services: Services, host: Host, added: Sequence[AddAddress | AddRoute]) -> None:
    """Raise NetworkError if a backend that has to be on a link is reached by a gateway."""
    links = [*host.routes, *(address.network for _, address in host.addresses)]
    links += [each.address.network if isinstance(each, AddAddress) else each.network for each in added]
    links = [network for network in links if network not in host.gateways]
    for part in services.parts:
        forwarding = part.service.forwarding
        for backend in part.backends.values() if FORWARDINGS[forwarding].on_link else ():
            by_link, by_gateway = (
                max((each.prefixlen for each in networks if backend.address.ip in each), default=-1)
                for networks in (links, host.gateways)
            )
            if by_gateway > by_link:
                raise NetworkError(
                    f"service {part.service.name}: backend {backend.address.ip} is reached by a gateway; with"
                    f' forwarding = "{forwarding}" a backend has to be on a link of this host, and with'
                    ' "tunnel" it may be anywhere'
                )


def _sysctls(services: Services, host: Host) -> list[SetSysctl]:
    config, families = services.config, services.families
    named = _interfaces(config)
    others = [name for name in host.links if name != "lo"]
    wanted: list[tuple[str, str, str]] = []
    if 4 in families:
        wanted.append((_IP_FORWARD, "1", "packets go on to the backends and back"))
        if host.sysctls.get(_IP_FORWARD) == "1":
            wanted += [
                (f"net/ipv4/conf/{name}/forwarding", "1", "packets go on to the backends and back")
                for name in named
            ]
        wanted += [
            (f"net/ipv4/conf/{name}/send_redirects", "0", "nobody is shown a way around the balancer")
            for name in ("all", *(named or others))
        ]
        if config.network.broadcast:
            wanted.append((_ECHO_BROADCASTS, "0", "network.broadcast: broadcast pings are answered"))
    if 6 in families:
        if host.sysctls.get(_IP6_FORWARD) != "1":
            # Before forwarding, or the kernel throws away the routes that it learned from routers.
            wanted += [
                (
                    f"net/ipv6/conf/{name}/accept_ra",
                    "2",
                    "a forwarding host keeps its default route with 2 only",
                )
                for name in others
                if host.sysctls.get(f"net/ipv6/conf/{name}/accept_ra") == "1"
            ]
        wanted.append((_IP6_FORWARD, "1", "packets go on to the backends and back"))
    return [
        SetSysctl(
            path=path,
            value=value,
            previous=previous,
            needed=not path.endswith("/send_redirects"),
            along=_along(path, host),
            why=why,
        )
        for path, value, why in wanted
        if (previous := host.sysctls.get(path)) != value
    ]


def _along(path: str, host: Host) -> tuple[tuple[str, str], ...]:
    """What the kernel overwrites when forwarding goes back to 0, where it was something else.

    inet_forward_change() in net/ipv4/devinet.c, addrconf_forward_change() in net/ipv6/addrconf.c.
    """
    if path not in (_IP_FORWARD, _IP6_FORWARD):
        return ()
    after = {
        other: "0"
        for other in host.sysctls
        if other.startswith(path[:9] + "conf/") and other.endswith("/forwarding") and other != path
    }
    if path == _IP_FORWARD:
        del after["net/ipv4/conf/all/forwarding"]
        after["net/ipv4/conf/all/accept_redirects"] = "1"
    return tuple(
        (other, host.sysctls[other]) for other, value in after.items() if host.sysctls[other] != value
    )


def _chains(services: Services, host: Host, family: Family) -> Iterator[AddChain]:
    """Replies before requests: a flow that no reply rule knows yet must not come to be."""
    for chain in _wanted_chains(services, host, family):
        if chain.rules:
            yield AddChain(family=family, variant=host.iptables, **chain._asdict())


def _wanted_chains(services: Services, host: Host, family: Family) -> Iterator[Chain]:
    if services.config.network.masquerade:
        rules = tuple(masquerade(_backend_networks(services, family)))
        why = "what backends start themselves leaves under this host's address"
        yield Chain("nat", "POSTROUTING", "LOADED-NAT", rules, why)
    if parts := services.of_family(family):
        rules = tuple(hairpin(_links(services, host, family), _vips(parts)))
        yield Chain(
            "nat", "POSTROUTING", "LOADED-HAIRPIN", rules, "clients that backends would answer directly"
        )
        # Where the VIPs are put nowhere, what came for them would be routed on.
        match, why = f"-m mark --mark {REJECTED:#x}", "what workers reject gets an answer"
        for hook in ("INPUT",) if services.config.network.public_interface else ("INPUT", "FORWARD"):
            yield Chain("filter", hook, f"LOADED-REJECT-{hook}", tuple(rejected(family)), why, match)
    found = [
        chain
        for name, forwarding in FORWARDINGS.items()
        for chain in forwarding.chains(_side(services, host, family, name))
    ]
    yield from found
    if family == 6 and not any(chain.hook == "POSTROUTING" for chain in found):
        # Last: where replies were queued in this chain before, what queues them now has to be there.
        why = "nobody is shown a way around the balancer"
        yield Chain("mangle", "POSTROUTING", "LOADED-POSTROUTING", (NO_REDIRECTS,), why)


def _own_addresses(services: Services, host: Host, family: Family) -> list[Interface]:
    network = services.config.network
    own = [*(address for _, address in host.addresses), *network.private_addresses, *network.public_addresses]
    return [address for address in own if address.version == family]


def _links(services: Services, host: Host, family: Family) -> list[Network]:
    """The networks in which this host is the backends' neighbour."""
    backends = _backends(services.of_family(family)).values()
    return list(
        dict.fromkeys(
            address.network
            for address in _own_addresses(services, host, family)
            if any(backend.ip in address.network for backend in backends)
        )
    )


def _side(services: Services, host: Host, family: Family, forwarding: str) -> Side:
    config, parts = services.config, services.of_family(family)
    here = [part for part in parts if part.service.forwarding == forwarding]
    backends = {backend.ip for backend in _backends(parts).values()}
    networks = _backend_networks(services, family)
    public, private = config.network.public_interface, config.network.private_interface
    return Side(
        family,
        _vips(here),
        bool(_each_vip(here) & _each_vip(part for part in parts if part not in here)),
        _backends(here),
        {number: part.service.listen for part in here for number in part.backends},
        networks,
        _sources(here, family),
        tuple(server for server in config.network.name_servers if server.version == family),
        tuple(
            address
            for address in dict.fromkeys(each.ip for each in _own_addresses(services, host, family))
            if any(address in network for network in networks) and address not in backends
        ),
        queue_target(services.queues),
        () if no_fast_path(config) else tuple(_interfaces(config)),
        public if private and public != private else None,
        _narrow_mtu(config, host),
        any(link.mtu > LONGEST_PACKET + 3 for name, link in host.links.items() if name != "lo"),
    )


def _each_vip(parts: Iterable[Part]) -> set[Address]:
    return {vip for part in parts for vip in part.vips.values()}


def _sources(parts: Iterable[Part], family: Family) -> tuple[Network, ...]:
    """The sources of packets that carry others."""
    carrying = [part.service for part in parts if FORWARDINGS[part.service.forwarding].carries]
    networks = (network for service in carrying for network in service.tunnel.sources)
    return tuple(dict.fromkeys(network for network in networks if network.version == family))


def _vips(parts: Sequence[Part]) -> dict[Address | Network, tuple[Listener, ...]]:
    """What is answered on each VIP, over all services on it; empty: everything."""
    found: dict[Address | Network, tuple[Listener, ...]] = {}
    everything = set()
    for part in parts:
        mine = (addresses_of(each) for each in part.service.vips if each.version == part.family)
        for vip in (each if each.num_addresses > 1 else each.network_address for each in mine):
            found[vip] = tuple(dict.fromkeys((*found.get(vip, ()), *part.service.listen)))
            if not part.service.listen:
                everything.add(vip)
    return {vip: () if vip in everything else listeners for vip, listeners in found.items()}


def _narrow_mtu(config: Config, host: Host) -> int | None:
    public, private = (
        host.links[name].mtu if name else None
        for name in (config.network.public_interface, config.network.private_interface)
    )
    return private if public and private and private < public else None


def _notes(services: Services, host: Host) -> list[str]:
    config, network = services.config, services.config.network
    notes = []
    if not network.public_interface:
        notes.append(
            "no network.public_interface: the VIPs are put nowhere and have to be routed to this host"
        )
        if network.public_addresses:
            notes.append("no network.public_interface: network.public_addresses are put nowhere")
    if not network.private_interface:
        notes.append("no network.private_interface: the backends are reached by the routes of this host")
        if network.private_addresses:
            notes.append("no network.private_interface: network.private_addresses are put nowhere")
    if network.broadcast and not any(
        network.broadcast in address.network for address in network.private_addresses
    ):
        notes.append(f"network.broadcast: {network.broadcast} is in the network of no private address")
    for family in services.families:
        vips = [addresses_of(vip) for service in config.services for vip in service.vips]
        own = [address.ip for link, address in host.addresses if link == network.public_interface]
        own += [address.ip for address in network.public_addresses]
        if (
            network.masquerade
            and network.public_interface
            and not any(
                address.version == family
                and not any(address in vip for vip in vips)
                and not address.is_link_local
                for address in own
            )
        ):
            notes.append(
                f"{network.public_interface} has only VIPs as IPv{family} addresses: of what backends start"
                " themselves only queries to network.name_servers get an answer; see network.public_addresses"
            )
    if not no_fast_path(config):
        on = ", ".join(_interfaces(config))
        notes.append(f"the fast path: programs at tc ingress and egress of {on}, where Linux has them (6.12)")
        if config.fast_path == "redirect":
            notes.append(
                f'fast_path = "redirect": between {" and ".join(_interfaces(config))} packets of known flows'
                " pass no FORWARD rules and no conntrack: firewalls do not see them"
            )
        for name, why in not_redirected(services).items():
            notes.append(f'service {name} goes the way of fast_path = "auto": {why}')
    for mine in _vip_networks(config) if network.public_interface else ():
        found = "neighbours find them" if mine.version == 4 else "no neighbour finds them"
        notes.append(f"VIP {mine} is {mine.num_addresses:,} VIPs: {found}; have it routed to this host")
    return notes + [f"service {each.name}: {OPEN}" for each in config.services if not each.listen]
