"""What has to change on a host so that a configuration works on it. No I/O.

The order is that in which the changes are made: the rules stand before the VIPs, so that the host's
own TCP never answers for one.

rp_filter is left alone, also where it is strict (1): requests are rewritten before and replies after
routing, so that the check sees clients and backends on the interfaces on which they live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from types import MappingProxyType

from loaded_mp.config.model import Address, Config, Interface, Network
from loaded_mp.network.changes import AddAddress, AddChain, AddRoute, Change, SetLinkUp, SetSysctl
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.rules import (
    ACCOUNTING_TABLE,
    LONGEST_PACKET,
    Family,
    Side,
    accounting,
    listeners_of,
    nat,
    postrouting,
    prerouting,
    queue_target,
    translation,
)

_IP_FORWARD = "net/ipv4/ip_forward"
_IP6_FORWARD = "net/ipv6/conf/all/forwarding"
_ECHO_BROADCASTS = "net/ipv4/icmp_echo_ignore_broadcasts"


@dataclass(frozen=True)
class Link:
    """A network interface."""

    up: bool
    mtu: int  #: bytes


@dataclass(frozen=True)
class Host:
    """What a plan has to know of a host."""

    links: Mapping[str, Link]
    addresses: tuple[tuple[str, Interface], ...]  #: interface and address
    routes: tuple[Network, ...]  #: besides those that addresses bring
    sysctls: Mapping[str, str]  #: path below /proc/sys: value


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


#: Name of a service and address of a backend -> the mark that workers give to its connections.
Marks = Mapping[tuple[str, Address], int]
NO_MARKS: Marks = MappingProxyType({})


def plan(config: Config, host: Host, first_queue: int, workers: int, marks: Marks = NO_MARKS) -> Plan:
    """The changes that `host` needs for `config`. `marks` holds the backends that the kernel forwards to.

    Raises NetworkError if an interface of the configuration does not exist.
    """
    for key, name in (
        ("network.public_interface", config.network.public_interface),
        ("network.private_interface", config.network.private_interface),
    ):
        if name is not None and name not in host.links:
            raise NetworkError(
                f"{key}: this host has no interface {name!r}; it has {', '.join(sorted(host.links))}"
            )
    addresses = _addresses(config, host)
    changes: list[Change] = [
        *_links(config, host),
        *_sysctls(config, host),
        *(address for address in addresses if not address.vip),
        *_routes(config, host, addresses),
        *_chains(config, host, queue_target(first_queue, workers), marks),
        *(address for address in addresses if address.vip),
    ]
    return Plan(tuple(changes), tuple(_notes(config, host)))


def without(host: Host, changes: Sequence[Change]) -> Host:
    """The host as it was before the changes were made to it."""
    links, addresses, routes = dict(host.links), list(host.addresses), list(host.routes)
    sysctls = dict(host.sysctls)
    for change in changes:
        if isinstance(change, SetLinkUp) and change.link in links:
            links[change.link] = replace(links[change.link], up=False)
        elif isinstance(change, AddAddress):
            addresses = [each for each in addresses if each != (change.link, change.address)]
        elif isinstance(change, AddRoute):
            routes = [each for each in routes if each != change.network]
        elif isinstance(change, SetSysctl) and change.previous is not None:
            sysctls[change.path] = change.previous
    return Host(links, tuple(addresses), tuple(routes), sysctls)


def _families(config: Config) -> list[Family]:
    versions = {vip.version for service in config.services for vip in service.vips}
    return [family for family in (4, 6) if family in versions]


def _backends(config: Config, family: Family) -> list[Address]:
    found = (backend.address for service in config.services for backend in service.backends)
    return [address for address in dict.fromkeys(found) if address.version == family]


def _backend_networks(config: Config, family: Family) -> tuple[Network, ...]:
    """The networks of the configuration, and each backend outside of them by itself."""
    given = [network for network in config.network.backend_networks if network.version == family]
    alone = [
        ip_network(backend)
        for backend in _backends(config, family)
        if not any(backend in network for network in given)
    ]
    return (*given, *alone)


def _interfaces(config: Config) -> list[str]:
    named = (config.network.public_interface, config.network.private_interface)
    return list(dict.fromkeys(name for name in named if name))


def _links(config: Config, host: Host) -> list[SetLinkUp]:
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
            for vip in service.vips:
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


def _routes(config: Config, host: Host, added: Sequence[AddAddress]) -> list[AddRoute]:
    """To the backends, where neither a route (the default does not count) nor an address leads there."""
    link = config.network.private_interface
    if not link:
        return []
    reached = [*host.routes, *(address.network for _, address in host.addresses)]
    reached += [change.address.network for change in added]
    return [
        AddRoute(link=link, network=network, why="the backends are on this interface")
        for family in _families(config)
        for network in _backend_networks(config, family)
        if not any(_covers(route, network) for route in reached)
    ]


def _covers(route: Network, network: Network) -> bool:
    return (
        route.version == network.version
        and 0 < route.prefixlen <= network.prefixlen
        and network.network_address in route
    )


def _sysctls(config: Config, host: Host) -> list[SetSysctl]:
    families = _families(config)
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


def _chains(config: Config, host: Host, queue: str, marks: Marks) -> list[AddChain]:
    """Replies before requests: a flow that no reply rule knows yet must not come to be."""
    clamp = any(link.mtu > LONGEST_PACKET + 3 for name, link in host.links.items() if name != "lo")
    chains = []
    for family in _families(config):
        networks = _backend_networks(config, family)
        backends = _backends(config, family)
        here = [address.ip for _, address in host.addresses]
        here += [address.ip for address in config.network.private_addresses + config.network.public_addresses]
        side = Side(
            family,
            listeners_of(config, family, "rewrite"),
            listeners_of(config, family, "conntrack"),
            tuple((address, mark) for (_, address), mark in marks.items() if address.version == family),
            networks,
            tuple(server for server in config.network.name_servers if server.version == family),
            tuple(
                address
                for address in dict.fromkeys(here)
                if any(address in network for network in networks) and address not in backends
            ),
            queue,
            _narrow_mtu(config, host),
        )
        wanted = []
        if config.network.masquerade:
            why = "what backends start themselves leaves under this host's address"
            wanted.append(("nat", "POSTROUTING", "", "LOADED-NAT", nat(side), why))
        if side.translated:
            why = "connections that the kernel translates"
            for name, (match, rules) in accounting(side).items():
                wanted.append((ACCOUNTING_TABLE, "FORWARD", match, name, rules, why))
            wanted.append(("nat", "PREROUTING", "", "LOADED-DNAT", translation(side), why))
        replies, requests = postrouting(side, clamp), prerouting(side)
        wanted += [
            ("mangle", "POSTROUTING", "", "LOADED-POSTROUTING", replies, "replies of backends"),
            ("raw", "PREROUTING", "", "LOADED-PREROUTING", requests, "packets for VIPs"),
        ]
        chains += [
            AddChain(
                family=family, table=table, hook=hook, match=match, name=name, rules=tuple(rules), why=why
            )
            for table, hook, match, name, rules, why in wanted
            if rules
        ]
    return chains


def _narrow_mtu(config: Config, host: Host) -> int | None:
    public, private = (
        host.links[name].mtu if name else None
        for name in (config.network.public_interface, config.network.private_interface)
    )
    return private if public and private and private < public else None


def _notes(config: Config, host: Host) -> list[str]:
    network = config.network
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
    for family in _families(config):
        vips = {vip.ip for service in config.services for vip in service.vips}
        own = [address.ip for link, address in host.addresses if link == network.public_interface]
        own += [address.ip for address in network.public_addresses]
        if (
            network.masquerade
            and network.public_interface
            and not any(
                address.version == family and address not in vips and not address.is_link_local
                for address in own
            )
        ):
            notes.append(
                f"{network.public_interface} has only VIPs as IPv{family} addresses: of what backends start"
                " themselves only queries to network.name_servers get an answer; see network.public_addresses"
            )
    return notes
