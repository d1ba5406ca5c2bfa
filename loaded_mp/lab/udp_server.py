"""UDP services of a lab's backend: echo (RFC 862) on port 7, DNS that names the backend on port 53.

python -m loaded_mp.lab.udp_server NAME ADDRESS...
"""

import asyncio
import socket
import sys
from typing import cast

_ECHO, _DNS = 7, 53
_HEADER = 12
#: A name that points to the question at offset 12; TXT, IN, 0 s (RFC 1035, 4.1).
_ANSWER = b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x00"


class Echo(asyncio.DatagramProtocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self.answer(data), addr)

    def answer(self, data: bytes) -> bytes:
        return data


class NamesItself(Echo):
    """Answers every DNS question with a TXT record that holds its name."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def answer(self, data: bytes) -> bytes:
        end = data.find(b"\0", _HEADER) + 5
        text = bytes([len(self._name)]) + self._name
        record = _ANSWER + len(text).to_bytes(2, "big") + text
        counts = b"\x00\x01\x00\x01\x00\x00\x00\x00"
        return data[:2] + b"\x84\x00" + counts + data[_HEADER:end] + record


async def _serve(name: str, addresses: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for address in addresses:
        for port, protocol in ((_ECHO, Echo), (_DNS, lambda: NamesItself(name))):
            server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            server.bind((address, port))
            await loop.create_datagram_endpoint(protocol, sock=server)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2:]))
