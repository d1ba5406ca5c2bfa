"""UDP services of a lab's backend: echo (RFC 862) on port 7, DNS that names the backend on port 53.

python -m loaded_mp.lab.udp_server NAME ADDRESS...
"""

import selectors
import socket
import sys

_ECHO, _DNS = 7, 53
_HEADER = 12
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
#: A name that points to the question at offset 12; TXT, IN, 0 s (RFC 1035, 4.1).
_ANSWER = b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x00"


def _dns_answer(query: bytes, name: bytes) -> bytes:
    """A TXT record that holds `name`, whatever the question is."""
    end = query.find(b"\0", _HEADER) + 5
    text = bytes([len(name)]) + name
    record = _ANSWER + len(text).to_bytes(2, "big") + text
    counts = b"\x00\x01\x00\x01\x00\x00\x00\x00"
    return query[:2] + b"\x84\x00" + counts + query[_HEADER:end] + record


def _serve(name: bytes, addresses: list[str]) -> None:
    selector = selectors.DefaultSelector()
    for address in addresses:
        for port in (_ECHO, _DNS):
            server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            server.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            server.bind((address, port))
            selector.register(server, selectors.EVENT_READ, port)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data, client = key.fileobj.recvfrom(65_536)
            key.fileobj.sendto(data if key.data == _ECHO else _dns_answer(data, name), client)


if __name__ == "__main__":
    _serve(sys.argv[1].encode(), sys.argv[2:])
