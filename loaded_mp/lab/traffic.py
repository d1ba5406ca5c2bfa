"""Requests from many source addresses by one process, which prints who answered as JSON.

python -m loaded_mp.lab.traffic http|dns VIP REQUESTS_EACH SOURCE...
"""

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable

_AT_ONCE = 50
_TIMEOUT_S = 10.0
_DNS_QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03who\x00\x00\x10\x00\x01"
#: Bytes of a TXT record before its text: name, type, class, lifetime, length, the text's own length.
_RECORD_BEFORE_TEXT = 13

Request = Callable[[str, str], Awaitable[str]]


async def http(vip: str, source: str) -> str:
    """GET / over a new connection; the body."""
    reader, writer = await asyncio.open_connection(vip, 80, local_addr=(source, 0))
    writer.write(b"GET / HTTP/1.0\r\nHost: vip\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.rpartition(b"\r\n\r\n")[2].decode().strip()


async def dns(vip: str, source: str) -> str:
    """Ask for a TXT record; its text."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if not answer.done():
                answer.set_result(data)

    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Client, local_addr=(source, 0), remote_addr=(vip, 53), family=family
    )
    try:
        transport.sendto(_DNS_QUERY)
        # The answer repeats the question; its record ends with a length byte and the text (RFC 1035, 3.3.14).
        return (await answer)[len(_DNS_QUERY) + _RECORD_BEFORE_TEXT :].decode()
    finally:
        transport.close()


_REQUESTS: dict[str, Request] = {"http": http, "dns": dns}


async def _all(request: Request, vip: str, each: int, sources: list[str]) -> dict[str, list[str]]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(source: str) -> list[str]:
        answers = []
        for _ in range(each):
            async with slots:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        answers.append(await request(vip, source))
                except OSError as error:
                    answers.append(f"error: {error or type(error).__name__}")
        return answers

    return dict(zip(sources, await asyncio.gather(*map(one, sources)), strict=True))


if __name__ == "__main__":
    kind, target, count, *addresses = sys.argv[1:]
    print(json.dumps(asyncio.run(_all(_REQUESTS[kind], target, int(count), addresses))))
