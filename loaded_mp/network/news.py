"""What tells that this machine has changed: netlink where it does, a glance at what nothing tells of."""

import ctypes
import socket
import struct
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from loaded_mp.network import sysctls
from loaded_mp.network.changes import AddChain, AddLocalRoute, AddRoute, Change, SetSysctl

#: linux/rtnetlink.h: links, addresses of both families, and what is told of net/*/conf (forwarding).
_ROUTE_GROUPS = 1 << 0 | 1 << 4 | 1 << 8 | 1 << 23 | 1 << 24
_ROUTES = (7, 11)
#: The settings that are told.
_TOLD = ("/ip_forward", "/forwarding")
#: linux/netlink.h and linux/netfilter/nfnetlink.h: every change to nft's rules, also those of iptables-nft.
_NETLINK_NETFILTER = 12
_NFTABLES_GROUP = 1 << 6

#: linux/netfilter_ipv4/ip_tables.h, and the same number for IPv6.
_GET_INFO = 64
_DOMAINS = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
_TABLE = struct.Struct("32s 13I")

#: linux/socket.h and linux/netlink.h.
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2

#: More messages than this are not thrown away at once.
_MOST_MESSAGES = 10_000

_getsockopt = ctypes.CDLL(None).getsockopt


class News:
    """Sockets that are readable when links, addresses, forwarding or nft's rules have changed.

    Routes are listened to only where one is wanted: a router has many, and they change all the time. What the
    messages say is of no interest: the machine is looked at.
    """

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        for protocol, groups in (
            (socket.NETLINK_ROUTE, _ROUTE_GROUPS),
            (_NETLINK_NETFILTER, _NFTABLES_GROUP),
        ):
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            self.sockets.append(news)
            news.bind((0, groups))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for news in self.sockets:
            news.close()

    def clear(self, wanted: Sequence[Change]) -> None:
        """Throw away what has been told so far; from now on listen to what matters for `wanted`."""
        routes = any(isinstance(each, AddRoute | AddLocalRoute) for each in wanted)
        for group in _ROUTES:
            self.sockets[0].setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP if routes else _DROP_MEMBERSHIP, group)
        for news in self.sockets:
            for _ in range(_MOST_MESSAGES):
                try:
                    news.recv(1)
                except BlockingIOError:
                    break
                except OSError:  # ENOBUFS: messages were lost, which is as good as read
                    continue


def glance(wanted: Sequence[Change]) -> tuple[object, ...]:
    """What nothing tells of: settings, and the figures of iptables-legacy's tables. Takes 0.1 ms.

    Others than before mean that something has changed.
    """
    settings = [
        sysctls.read(each.path)
        for each in wanted
        if isinstance(each, SetSysctl) and not each.path.endswith(_TOLD)
    ]
    tables = {(each.family, each.table) for each in wanted if isinstance(each, AddChain)}
    return (*settings, *(_figures(family, tables) for family in sorted({family for family, _ in tables})))


def _legacy_tables(family: int) -> list[str]:
    """Those that exist: to ask for another one would make it."""
    try:
        with open(f"/proc/net/ip{'6' if family == 6 else ''}_tables_names", "rb", 0) as names:
            return names.read().decode().split()
    except OSError:
        return []


def _figures(family: int, tables: Collection[tuple[int, str]]) -> tuple[bytes, ...]:
    """Of each table where its chains lie, its number of rules and its size."""
    there = [name for name in _legacy_tables(family) if (family, name) in tables]
    if not there:
        return ()
    domain, level = _DOMAINS[family]
    with socket.socket(domain, socket.SOCK_DGRAM) as any_socket:
        return tuple(_info(any_socket.fileno(), level, name) for name in there)


def _info(descriptor: int, level: int, table: str) -> bytes:
    info = ctypes.create_string_buffer(_TABLE.pack(table.encode(), *[0] * 13), _TABLE.size)
    length = ctypes.c_uint32(_TABLE.size)
    # A table that has just gone has other figures than before: none.
    return b"" if _getsockopt(descriptor, level, _GET_INFO, info, ctypes.byref(length)) else info.raw
