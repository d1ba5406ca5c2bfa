"""Switch off what an interface leaves to others: checksums and segments longer than its MTU.

python -m loaded_mp.lab.offloads INTERFACE...
"""

import ctypes
import fcntl
import socket
import struct
import sys

_SIOCETHTOOL = 0x8946  # include/uapi/linux/sockios.h
#: ETHTOOL_SRXCSUM, _STXCSUM, _STSO, _SGSO and _SGRO (include/uapi/linux/ethtool.h).
_COMMANDS = (0x15, 0x17, 0x1F, 0x24, 0x2C)


def _switch_off(interface: str) -> None:
    """Raises OSError where an offload cannot be switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _COMMANDS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))  # struct ifreq
            fcntl.ioctl(control, _SIOCETHTOOL, request)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        _switch_off(name)
