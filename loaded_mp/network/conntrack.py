"""Connections that the kernel translates: counting them, and making it forget them."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError

from loaded_mp.network import iptables
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.rules import ACCOUNTING_TABLE, Family

_WHOLE_MARK = 0xFFFF_FFFF
_COUNTER = re.compile(r"\[(\d+):(\d+)\] -A LOADED-FORWARD-\d+ -([ds]) \S+ -m connmark --mark (0x[0-9a-f]+) ")
_DIRECTIONS = {"d": "to_backend", "s": "to_client"}


class Counted(NamedTuple):
    """What was forwarded for one mark; bytes of IP packets."""

    to_backend_packets: int = 0
    to_backend_bytes: int = 0
    to_client_packets: int = 0
    to_client_bytes: int = 0


def forget_connections(mark: int) -> None:
    """Delete all connections with this mark. Raises NetworkError if the kernel refuses.

    A TCP client is then told at its next packet, by a reset from another backend; UDP goes to that one.
    """

    def flush() -> None:
        with NFCTSocket() as connections:
            connections.flush(mark=mark, mark_mask=_WHOLE_MARK)

    try:
        # In a thread, as pyroute2 runs an event loop of its own; it ends with the call.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(flush).result()
    except NetlinkError as error:
        raise NetworkError(
            f"connections with mark {mark:#x} cannot be deleted: {error.args[-1]};"
            " the kernel module nf_conntrack_netlink may be missing"
        ) from error


def read_counters(families: tuple[Family, ...]) -> dict[int, Counted]:
    """What the rules in the chains LOADED-FORWARD-* have counted so far, by mark. Raises NetworkError."""
    counted: dict[int, Counted] = {}
    for family in families:
        for packets, octets, end, mark in _COUNTER.findall(iptables.saved(family, ACCOUNTING_TABLE)):
            number, direction = int(mark, 16), _DIRECTIONS[end]
            counted[number] = counted.get(number, Counted())._replace(
                **{f"{direction}_packets": int(packets), f"{direction}_bytes": int(octets)}
            )
    return counted
