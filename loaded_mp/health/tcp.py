"""The TCP check: whether a connection comes about."""

import asyncio
import os
import socket
import struct

from loaded_mp.config.model import Address

#: Closing resets the connection: neither side is left with TIME_WAIT, and nobody waits for a FIN.
_LINGER_RESET = struct.pack("ii", 1, 0)


async def connect(address: Address, port: int, timeout_s: float) -> str | None:
    """Connect and close again: None if that worked, else why not, in words."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        if error.errno is None:  # the timeout of asyncio; the kernel's own has a number
            return f"no answer within {timeout_s:g} s"
        return os.strerror(error.errno).lower()
    return None
