"""Takes packets out of tunnels, as kernels with ipip, ip6_tunnel and fou do: IP in IP, and GUE on port 6080.

They appear on the device `tunnel` (drivers/net/tun.c), which lasts as long as this does.
"""

import fcntl
import os
import selectors
import socket
import struct

DEVICE = "tunnel"
_IPV4, _IPV6, _GUE_PORT = 4, 41, 6080
# include/uapi/linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000


def _device() -> int:
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return tunnel


def _sockets() -> list[socket.socket]:
    gue4, gue6 = (socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6))
    gue6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    gue6.setsockopt(socket.IPPROTO_UDP, 102, 1)  # UDP_NO_CHECK6_RX in include/uapi/linux/udp.h
    gue4.bind(("", _GUE_PORT))
    gue6.bind(("", _GUE_PORT))
    return [
        socket.socket(socket.AF_INET, socket.SOCK_RAW, _IPV4),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, _IPV6),
        gue4,
        gue6,
    ]


def _serve() -> None:
    selector, tunnel = selectors.DefaultSelector(), _device()
    for each in _sockets():
        each.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        selector.register(each, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            packet = key.fileobj.recv(65_536)
            if key.fileobj.family == socket.AF_INET and key.fileobj.type == socket.SOCK_RAW:
                packet = packet[(packet[0] & 0xF) * 4 :]  # raw(7): with its header, raw6 without
            os.write(tunnel, packet)


if __name__ == "__main__":
    _serve()
