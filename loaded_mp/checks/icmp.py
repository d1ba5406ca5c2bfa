"""The ICMP check: whether an echo request is answered."""

import os
import socket
import struct
from typing import Literal, NamedTuple

from loaded_mp.checks.check import Check, Finding
from loaded_mp.checks.datagram import asked
from loaded_mp.fields import Endpoint


class _Echo(NamedTuple):
    """Numbers of a family's echo."""

    protocol: int
    request: int  #: type
    reply: int


#: RFC 792, RFC 4443.
_ECHO = {4: _Echo(socket.IPPROTO_ICMP, 8, 0), 6: _Echo(socket.IPPROTO_ICMPV6, 128, 129)}
_HEADER = struct.Struct("!BBHHH")


class IcmpCheck(Check):
    """Send an echo request. Needs CAP_NET_RAW."""

    type: Literal["icmp"] = "icmp"

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if it echoes what was sent."""
        text = os.urandom(16)  # tells our replies from those to others
        request = echo_request(endpoint.version, text)
        async with asked(endpoint, request, _ECHO[endpoint.version].protocol) as answered:
            while True:
                if is_echo(endpoint.version, await answered(), text):
                    return Finding(said="echoed")

    def question(self, endpoint: Endpoint) -> str:
        """As in "ping 10.0.0.1"."""
        return f"ping {endpoint.ip}"

    def __str__(self) -> str:
        return "ICMP echo"


def echo_request(version: int, text: bytes) -> bytes:
    """An echo request of IPv4 or IPv6 with a text of an even length, for a raw socket."""
    request = _ECHO[version].request
    packet = _HEADER.pack(request, 0, 0, 0, 0) + text
    if version == 4:  # the kernel fills in the checksum of ICMPv6 only
        packet = _HEADER.pack(request, 0, _checksum(packet), 0, 0) + text
    return packet


def is_echo(version: int, data: bytes, text: bytes) -> bool:
    """Whether what a raw socket gave is the reply to the request with this text."""
    start = (data[0] & 15) * 4 if version == 4 else 0  # raw IPv4 gives its header too
    return data[start : start + 1] == bytes([_ECHO[version].reply]) and data[start + _HEADER.size :] == text


def _checksum(packet: bytes) -> int:
    """The internet checksum (RFC 1071) of a packet of an even length."""
    total: int = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
