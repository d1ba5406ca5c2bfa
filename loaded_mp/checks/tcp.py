"""The TCP check: whether a connection comes about."""

import asyncio
import os
import socket
import struct
from typing import ClassVar, Literal

from loaded_mp.checks.check import Check, is_local
from loaded_mp.fields import Address, Port

#: Closing resets the connection: neither side is left with TIME_WAIT, and nobody waits for a FIN.
_LINGER_RESET = struct.pack("ii", 1, 0)


class TcpCheck(Check):
    """Connect and close again."""

    passed: ClassVar[str] = "accepted"

    type: Literal["tcp"] = "tcp"
    port: Port

    async def attempt(self, address: Address) -> str | None:
        """None once the backend has accepted."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            try:
                await asyncio.get_running_loop().sock_connect(connection, (str(address), self.port))
            except ConnectionRefusedError:
                return "refused"
            except OSError as error:
                if is_local(error) or error.errno is None:
                    raise
                return os.strerror(error.errno).lower()
        return None

    def question(self, address: Address) -> str:
        """As in "connect to [fd00::1]:80"."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"connect to {host}:{self.port}"

    def __str__(self) -> str:
        return f"TCP port {self.port}"
