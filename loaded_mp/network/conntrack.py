"""The kernel's table of connections, by netlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h)."""

import errno
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_address
from typing import Any, TypeVar

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_SEEN_REPLY,
    TCP_CONNTRACK_CLOSE,
    TCP_CONNTRACK_TIME_WAIT,
    NFCTAttrTuple,
)

from loaded_mp.fields import Endpoint
from loaded_mp.network.errors import NetworkError

Result = TypeVar("Result")

_WHOLE_MARK = 0xFFFF_FFFF
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
#: What nobody will say anything on; on a busy machine most are so.
_OVER = (TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE)
#: The mask and the flags: windows were not seen from the beginning, so none is too far out.
_LIBERAL = {"value": (IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL)}


@dataclass(frozen=True)
class Connection:
    """A connection between a client and a backend, as the kernel knows it."""

    original: NFCTAttrTuple  #: client to backend, or to the VIP that the kernel translates
    reply: NFCTAttrTuple  #: backend to whom it takes for its client
    status: int  #: IPS_*
    timeout_s: int
    tcp_state: int | None
    mark: int

    @property
    def protocol(self) -> int:
        """IANA number."""
        return int(self.original.proto)

    @cached_property
    def destination(self) -> Endpoint:
        """Whom the client speaks to."""
        return Endpoint(ip_address(self.original.daddr), self.original.dport)

    @cached_property
    def backend(self) -> Endpoint:
        """Who answers."""
        return Endpoint(ip_address(self.reply.saddr), self.reply.sport)

    @property
    def turned(self) -> "Connection":
        """The same, if it was the backend's word that the kernel saw first."""
        return replace(self, original=self.reply, reply=self.original)


def forget_connections(mark: int) -> None:
    """Delete all connections with this mark. Raises NetworkError if the kernel refuses."""

    def flush() -> None:
        with NFCTSocket() as table:
            table.flush(mark=mark, mark_mask=_WHOLE_MARK)

    _asked(flush, f"connections with mark {mark:#x} cannot be deleted")


def connections_with(mark: int, mask: int, version: int) -> list[Connection]:
    """The connections of a family that go on and have this mark. Raises NetworkError."""

    def read() -> list[Connection]:
        with NFCTSocket(_FAMILIES[version]) as table:
            told = table.dump(mark=mark, mark_mask=mask)
            return [_connection(version, each) for each in told if _tcp_state(each) not in _OVER]

    return _asked(read, f"connections with mark {mark:#x}/{mask:#x} cannot be read")


def enter_connections(connections: Iterable[tuple[Connection, Endpoint, int]], version: int) -> None:
    """Enter connections of one family, each with whom its client speaks to, and a mark.

    If that is not the backend's, it is as if the kernel's NAT had translated it from the beginning. Those
    that clients have begun anew meanwhile stay as they are. Raises NetworkError if the kernel refuses.
    """

    def enter() -> None:
        with NFCTSocket(_FAMILIES[version]) as table:
            for connection, destination, mark in connections:
                try:
                    table.entry("add", **_entry(connection, destination, mark, version))
                except NetlinkError as error:
                    if error.code != errno.EEXIST:
                        raise

    _asked(enter, "connections cannot be entered")


def _entry(connection: Connection, destination: Endpoint, mark: int, version: int) -> Mapping[str, Any]:
    client, reply = connection.original, connection.reply
    ends = client.saddr, str(destination.ip), connection.protocol, client.sport, destination.port
    original = NFCTAttrTuple(_FAMILIES[version], *ends)
    fields = {
        "tuple_orig": original,
        "tuple_reply": original.reverse(),
        "status": connection.status & (IPS_SEEN_REPLY | IPS_ASSURED) | IPS_CONFIRMED,
        "timeout": connection.timeout_s,
        "mark": mark,
    }
    if connection.backend != destination:
        fields["nat_dst"] = _nat(version, reply.saddr, reply.sport)
    if (reply.daddr, reply.dport) != (client.saddr, client.sport):
        fields["nat_src"] = _nat(version, reply.daddr, reply.dport)
    if connection.tcp_state is not None:
        state = [
            ["CTA_PROTOINFO_TCP_STATE", connection.tcp_state],
            ["CTA_PROTOINFO_TCP_FLAGS_ORIGINAL", _LIBERAL],
            ["CTA_PROTOINFO_TCP_FLAGS_REPLY", _LIBERAL],
        ]
        fields["protoinfo"] = {"attrs": [["CTA_PROTOINFO_TCP", {"attrs": state}]]}
    return fields


def _nat(version: int, address: str, port: int) -> dict[str, Any]:
    ports = [["CTA_PROTONAT_PORT_MIN", port], ["CTA_PROTONAT_PORT_MAX", port]]
    return {
        "attrs": [
            [f"CTA_NAT_V{version}_MINIP", address],
            [f"CTA_NAT_V{version}_MAXIP", address],
            ["CTA_NAT_PROTO", {"attrs": ports}],
        ]
    }


def _connection(version: int, message: Any) -> Connection:
    family = _FAMILIES[version]
    original, reply = (
        NFCTAttrTuple.from_netlink(family, message.get_attr(name))
        for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
    )
    return Connection(
        original,
        reply,
        message.get_attr("CTA_STATUS"),
        message.get_attr("CTA_TIMEOUT"),
        _tcp_state(message),
        message.get_attr("CTA_MARK"),
    )


def _tcp_state(message: Any) -> int | None:
    tcp = message.get_nested("CTA_PROTOINFO", "CTA_PROTOINFO_TCP")
    return None if tcp is None else int(tcp.get_attr("CTA_PROTOINFO_TCP_STATE"))


def _asked(question: Callable[[], Result], failure: str) -> Result:
    """Ask in a thread, as pyroute2 runs an event loop of its own; it ends with the call."""
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(question).result()
    except NetlinkError as error:
        raise NetworkError(
            f"{failure}: {error.args[-1]}; the kernel module nf_conntrack_netlink may be missing"
        ) from error
