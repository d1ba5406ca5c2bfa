"""An echo request to everybody on a link, and who answers it."""

import asyncio
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from loaded_mp.checks.icmp import echo_request, is_echo
from loaded_mp.fields import Address, Interface, Network

#: Answers to one request that are looked at. A flood is not read to its end.
MOST_ANSWERS = 2_048
#: Room for about as many in the kernel, in bytes.
_BUFFER_BYTES = 1 << 20

_ALL_NODES = IPv6Address("ff02::1")
#: What Python's socket does not name: linux/socket.h, linux/icmp.h, linux/icmpv6.h, linux/sock_diag.h.
_SO_RCVBUFFORCE = 33
_SO_MEMINFO, _MEMINFO, _DROPS = 55, struct.Struct("9I"), 8
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
#: A bit for each ICMP type that is not wanted: all but echo replies, 0 and 129.
_FILTERS = {
    4: (_SOL_RAW, _ICMP_FILTER, struct.pack("I", ~1 & 0xFFFFFFFF)),
    6: (
        socket.IPPROTO_ICMPV6,
        _ICMPV6_FILTER,
        struct.pack("8I", *(~(1 << 129) >> 32 * word & 0xFFFFFFFF for word in range(8))),
    ),
}


class Question(NamedTuple):
    """Whom to ask, and as whom: to a link-local source IPv6 machines answer from their link-local address."""

    interface: str
    source: Address
    target: Address  #: of everybody


class Heard(NamedTuple):
    """What came back."""

    answered: frozenset[Address]
    whole: bool  #: nothing was lost; else silence means nothing
    faults: tuple[str, ...] = ()  #: why something could not be asked


def questions(
    interface: str,
    addresses: Iterable[tuple[str, Interface]],
    networks: Sequence[Network],
    broadcast: Address | None,
) -> list[Question]:
    """What to ask on an interface so that machines in `networks` answer.

    `addresses` are this machine's, with their interfaces. `broadcast` is used on the network that it is in;
    on others it is the last address.
    """
    asked = []
    for name, address in addresses:
        if name != interface or not any(
            network.version == address.version and network.overlaps(address.network) for network in networks
        ):
            continue
        target: Address = _ALL_NODES
        if address.version == 4:
            given = broadcast is not None and broadcast in address.network
            target = broadcast if broadcast and given else address.network.broadcast_address
        asked.append(Question(interface, address.ip, target))
    return asked


async def hear(asked: Sequence[Question], patience_s: float) -> Heard:
    """Ask all of them, and collect answers for a while."""
    heard = await asyncio.gather(*(_hear(question, patience_s) for question in asked), return_exceptions=True)
    answered: set[Address] = set()
    whole, faults = True, []
    for question, each in zip(asked, heard, strict=True):
        if isinstance(each, OSError):
            faults.append(f"echo from {question.source} to {question.target}: {each.strerror}")
        elif isinstance(each, BaseException):
            raise each
        else:
            answered |= each.answered
            whole = whole and each.whole
    return Heard(frozenset(answered), whole and not faults, tuple(faults))


async def _hear(question: Question, patience_s: float) -> Heard:
    loop = asyncio.get_running_loop()
    version = question.source.version
    text = os.urandom(16)  # tells answers to this from all others
    answered: set[Address] = set()
    looked_at = 0
    with _socket(question) as connection:
        await loop.sock_sendto(connection, echo_request(version, text), (str(question.target), 0))
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while looked_at < MOST_ANSWERS:
                    data, sender = await loop.sock_recvfrom(connection, 256)
                    looked_at += 1
                    if is_echo(version, data, text):
                        answered.add(ip_address(sender[0]))
                    await asyncio.sleep(0)  # what waits is read without a pause else
        told = connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return Heard(frozenset(answered), looked_at < MOST_ANSWERS and not _MEMINFO.unpack(told)[_DROPS])


def _socket(question: Question) -> socket.socket:
    """A raw one that hears echo replies only. Raises OSError."""
    version = question.source.version
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, question.interface.encode() + b"\0")
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        made.setsockopt(*_FILTERS[version])
        if version == 4:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            index = socket.if_nametoindex(question.interface)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        made.bind((str(question.source), 0))
    except OSError:
        made.close()
        raise
    return made
