"""The ICMP check: whether an echo request is answered."""

import os
import socket
import struct
from typing import Literal

from loaded_mp.checks.check import Check, Finding
from loaded_mp.checks.datagram import asked
from loaded_mp.fields import Address

#: Protocol, type of a request and of a reply (RFC 792, RFC 4443).
_ECHO = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
_HEADER = struct.Struct("!BBHHH")


class IcmpCheck(Check):
    """Send an echo request. Needs CAP_NET_RAW."""

    type: Literal["icmp"] = "icmp"

    async def attempt(self, address: Address) -> Finding:
        """Serves if it echoes what was sent."""
        protocol, request, reply = _ECHO[address.version]
        text = os.urandom(16)  # tells our replies from those to others
        packet = _HEADER.pack(request, 0, 0, 0, 0) + text
        if address.version == 4:  # the kernel fills in the checksum of ICMPv6 only
            packet = _HEADER.pack(request, 0, _checksum(packet), 0, 0) + text
        async with asked(address, 0, packet, protocol) as answered:
            while True:
                data = await answered()
                start = (data[0] & 15) * 4 if address.version == 4 else 0  # raw IPv4 gives its header too
                if data[start : start + 1] == bytes([reply]) and data[start + _HEADER.size :] == text:
                    return Finding(said="echoed")

    def question(self, address: Address) -> str:
        """As in "ping 10.0.0.1"."""
        return f"ping {address}"

    def __str__(self) -> str:
        return "ICMP echo"


def _checksum(packet: bytes) -> int:
    """The internet checksum (RFC 1071) of a packet of an even length."""
    total: int = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
