"""A server that answers each line with its name and the line, and speaks by itself when a file is touched."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

PORT = 7000
SPEAKS = b" speaks\n"
_POLL_S = 0.02


async def speak(name: str, file: Path, *addresses: str) -> None:
    """Serve at the addresses; a line goes to every client when `file` has changed."""
    clients: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(f"{name} {line.decode()}".encode())
        clients.remove(writer)
        writer.close()

    for address in addresses:
        await asyncio.start_server(serve, address, PORT)
    last = changed = file.stat().st_mtime_ns
    while True:
        if changed != last:
            last = changed
            for writer in clients:
                writer.write(name.encode() + SPEAKS)
        await asyncio.sleep(_POLL_S)
        changed = file.stat().st_mtime_ns


if __name__ == "__main__":
    asyncio.run(speak(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
