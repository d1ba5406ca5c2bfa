"""Telling the neighbours on a link that an address is here now, so that they stop sending elsewhere."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from loaded_mp.fields import Address

_ETHERTYPE_ARP = 0x0806
_ETHERTYPE_IPV6 = 0x86DD
_ARPHRD_ETHER = 1
_ICMPV6 = 58
_NEIGHBOR_ADVERTISEMENT = 136
#: We are a router; not asked for; to be believed over what was known (RFC 4861, 4.4).
_ROUTER_OVERRIDE = 0xA000_0000
_TARGET_LINK_LAYER_ADDRESS = 2
_ALL_NODES = IPv6Address("ff02::1")


def announce(link: str, address: Address) -> None:
    """Send one announcement; on links that are no Ethernet there is nobody to tell. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK) as packets:
        packets.bind((link, 0))
        _, _, _, kind, mac = packets.getsockname()
        if kind == _ARPHRD_ETHER:
            packets.send(announcement(mac, address))


def announcement(mac: bytes, address: Address) -> bytes:
    """The Ethernet frame that tells everybody on a link that `address` is at `mac`."""
    return arp_announcement(mac, address) if address.version == 4 else neighbor_advertisement(mac, address)


def arp_announcement(mac: bytes, address: IPv4Address) -> bytes:
    """RFC 5227, 2.3: a request for the address by the address itself."""
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, address.packed, bytes(6), address.packed)
    return b"\xff" * 6 + mac + _ETHERTYPE_ARP.to_bytes(2, "big") + arp


def neighbor_advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """RFC 4861, 7.2.6: unsolicited, to all nodes."""
    source, destination = address.packed, _ALL_NODES.packed
    option = struct.pack("!BB6s", _TARGET_LINK_LAYER_ADDRESS, 1, mac)
    body = struct.pack("!I16s", _ROUTER_OVERRIDE, address.packed) + option
    message = struct.pack("!BBH", _NEIGHBOR_ADVERTISEMENT, 0, 0) + body
    pseudo_header = source + destination + struct.pack("!II", len(message), _ICMPV6)
    message = struct.pack("!BBH", _NEIGHBOR_ADVERTISEMENT, 0, _checksum(pseudo_header + message)) + body
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + source + destination
    # RFC 2464, 7: the group's last four bytes.
    return b"\x33\x33" + destination[-4:] + mac + _ETHERTYPE_IPV6.to_bytes(2, "big") + header + message


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
