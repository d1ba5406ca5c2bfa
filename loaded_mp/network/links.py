"""Interfaces, addresses and routes of the current network namespace, by rtnetlink."""

import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import Any, NamedTuple, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from loaded_mp.fields import Interface, Network
from loaded_mp.network.changes import AddAddress, AddLocalRoute, AddRoute, SetLinkUp
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Link

Result = TypeVar("Result")

#: linux/if.h, linux/if_addr.h and linux/rtnetlink.h.
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_IFA_F_NODAD = 0x02
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTPROT_KERNEL = 2
_RTPROT_BOOT = 3
_RT_SCOPE_LINK, _RT_SCOPE_HOST = 253, 254
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_FOREVER = 0xFFFFFFFF
#: A route has one of these where its packets go to another router; of several, none is a link by itself.
_GATEWAYS = ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH")

#: What the kernel says where there is nothing to take back any more.
_GONE = (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENETDOWN)


class Links(NamedTuple):
    """Interfaces and what is on them."""

    links: dict[str, Link]
    addresses: tuple[tuple[str, Interface], ...]
    routes: tuple[Network, ...]  #: networks of the main table that addresses do not bring
    local: tuple[Network, ...]  #: and of the local one
    gateways: tuple[Network, ...] = ()  #: of `routes` and the default those that another router is on


def read_links(with_routes: bool = True) -> Links:
    """Interfaces, their addresses, and the routes that addresses do not bring.

    A router may have a million routes; whoever needs none does without. Raises NetworkError if the kernel
    does not say.
    """
    try:
        return _ask(partial(_read, with_routes=with_routes))
    except NetlinkError as error:
        raise NetworkError(f"interfaces and addresses cannot be read: {error.args[-1]}") from error


def set_up(change: SetLinkUp) -> None:
    """Switch an interface on. Raises NetworkError if the kernel refuses, as all that follow here do."""
    _make(change, lambda ip, index: ip.link("set", index=index, state="up"))


def set_down(change: SetLinkUp) -> None:
    """Switch it off; what is gone already is fine, here and below."""
    _take_back(change, lambda ip, index: ip.link("set", index=index, state="down"))


def add_address(change: AddAddress) -> None:
    """Put an address on an interface; what is there already is fine, here and below."""
    extra: dict[str, Any] = {}
    if change.address.version == 6:
        extra["flags"] = _IFA_F_NODAD
    if change.deprecated:
        extra |= {"preferred": 0, "valid": _FOREVER}
    if change.broadcast:
        extra["broadcast"] = str(change.broadcast)
    _make(change, lambda ip, index: ip.addr("add", index=index, **_address(change), **extra))


def delete_address(change: AddAddress) -> None:
    """Take it away; routes of others over the interface stay."""

    def delete(ip: Any, index: int) -> None:
        others = _routes_of_others(ip, index)
        ip.addr("del", index=index, **_address(change))
        for route in others:
            # Still there, or its gateway went with the address.
            with suppress(NetlinkError):
                ip.route("add", **route)

    _take_back(change, delete)


def add_route(change: AddRoute | AddLocalRoute) -> None:
    """Add a route over an interface, or to this machine itself."""
    _make(change, lambda ip, index: ip.route("add", oif=index, **_route(change)))


def delete_route(change: AddRoute | AddLocalRoute) -> None:
    """Delete it."""
    _take_back(change, lambda ip, index: ip.route("del", oif=index, **_route(change)))


_LinkChange = SetLinkUp | AddAddress | AddRoute | AddLocalRoute


def _make(change: _LinkChange, work: Callable[[Any, int], object]) -> None:
    try:
        _ask(lambda ip: work(ip, _index(ip, change.link)))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise NetworkError(f"{change.command}: {error.args[-1]}{_advice(change, error.code)}") from error


def _take_back(change: _LinkChange, work: Callable[[Any, int], object]) -> None:
    try:
        _ask(lambda ip: work(ip, _index(ip, change.link)))
    except NetlinkError as error:
        if error.code not in _GONE:
            raise NetworkError(f"cannot undo `{change.command}`: {error.args[-1]}") from error


def _ask(work: Callable[[Any], Result]) -> Result:
    """Run `work` with a netlink socket, in a thread of its own that ends with it.

    pyroute2 runs an event loop for every call, and a thread that runs one already cannot run another.
    """

    def with_socket() -> Result:
        with IPRoute() as ip:
            return work(ip)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(with_socket).result()


def _read(ip: Any, with_routes: bool) -> Links:
    names = {}
    links = {}
    for link in ip.get_links():
        name = link.get_attr("IFLA_IFNAME")
        names[link["index"]] = name
        flags = link["flags"]
        links[name] = Link(
            bool(flags & _IFF_UP),
            link.get_attr("IFLA_MTU"),
            bool(flags & _IFF_LOWER_UP),
            link.get_attr("IFLA_CARRIER_CHANGES") or 0,
        )
    addresses = tuple(
        (
            names[each["index"]],
            ip_interface(f"{each.get_attr('IFA_LOCAL') or each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}"),
        )
        for each in ip.get_addr()
        if each["index"] in names
    )
    routes, local = (
        [
            each
            for each in (ip.get_routes(table=table) if with_routes else ())
            if each["type"] == kind and each["proto"] != _RTPROT_KERNEL
        ]
        for table, kind in ((_RT_TABLE_MAIN, _RTN_UNICAST), (_RT_TABLE_LOCAL, _RTN_LOCAL))
    )
    return Links(
        links,
        addresses,
        tuple(_network(each) for each in routes if each.get_attr("RTA_DST")),
        tuple(_network(each) for each in local if each.get_attr("RTA_DST")),
        tuple(_network(each) for each in routes if any(map(each.get_attr, _GATEWAYS))),
    )


def _network(route: Any) -> Network:
    anywhere = "0.0.0.0" if route["family"] == socket.AF_INET else "::"
    return ip_network(f"{route.get_attr('RTA_DST') or anywhere}/{route['dst_len']}")


def _index(ip: Any, name: str) -> int:
    found: list[int] = ip.link_lookup(ifname=name)
    if not found:
        raise NetlinkError(errno.ENODEV, "No such device")
    return found[0]


def _address(change: AddAddress) -> dict[str, Any]:
    return {
        "family": socket.AF_INET if change.address.version == 4 else socket.AF_INET6,
        "address": str(change.address.ip),
        "prefixlen": change.address.network.prefixlen,
    }


def _route(change: AddRoute | AddLocalRoute) -> dict[str, Any]:
    route: dict[str, Any] = {"dst": str(change.network), "proto": _RTPROT_BOOT}
    scope = _RT_SCOPE_LINK
    if isinstance(change, AddLocalRoute):
        route |= {"type": "local", "table": _RT_TABLE_LOCAL}
        scope = _RT_SCOPE_HOST
    return route | ({"scope": scope} if change.network.version == 4 else {})


def _routes_of_others(ip: Any, index: int) -> list[dict[str, Any]]:
    """IPv4 routes over an interface: they go with its last address (fib_disable_ip in the kernel)."""
    routes = []
    for each in ip.get_routes(family=socket.AF_INET, table=_RT_TABLE_MAIN):
        if each.get_attr("RTA_OIF") != index or each["proto"] == _RTPROT_KERNEL:
            continue
        route = {key: each[key] for key in ("scope", "proto", "type", "tos")}
        for key in ("gateway", "prefsrc", "priority"):
            if value := each.get_attr(f"RTA_{key.upper()}"):
                route[key] = value
        if metrics := each.get_attr("RTA_METRICS"):
            route["metrics"] = {name[5:].lower(): value for name, value in metrics["attrs"]}
        routes.append(
            route | {"dst": f"{each.get_attr('RTA_DST') or '0.0.0.0'}/{each['dst_len']}", "oif": index}
        )
    return routes


def _advice(change: _LinkChange, code: int) -> str:
    if code == errno.EACCES and isinstance(change, AddAddress):
        return f"; IPv6 is off on it: sysctl -w net.ipv6.conf.{change.link}.disable_ipv6=0"
    if code in (errno.EPERM, errno.EACCES):
        return "; loaded-mp has to run as root"
    return ""
