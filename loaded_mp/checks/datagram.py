"""Datagrams of checks: one question, answers of that address only."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from loaded_mp.checks.check import MAX_ANSWER_BYTES
from loaded_mp.fields import Endpoint


@contextlib.asynccontextmanager
async def asked(
    endpoint: Endpoint, question: bytes, protocol: int = 0
) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Sends a question; what the context gives waits for the next answer. `protocol`: by a raw socket.

    The socket is connected: the kernel drops what others send, and tells when nobody listens. Raises OSError.
    """
    family = socket.AF_INET if endpoint.version == 4 else socket.AF_INET6
    kind = socket.SOCK_RAW if protocol else socket.SOCK_DGRAM
    loop = asyncio.get_running_loop()
    with socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol) as connection:
        connection.connect((str(endpoint.ip), endpoint.port or 0))
        await loop.sock_sendall(connection, question)
        yield lambda: loop.sock_recv(connection, MAX_ANSWER_BYTES)
