"""Connections that last: from each source a slow download, an idle one, a slow upload, one to be spoken to.

Prints how many there are; at a line on its input it lets them come to their ends, and prints how many were
served throughout by the backend with which they began, and what became of some of the others.
"""

import asyncio
import sys
from collections.abc import Sequence

from loaded_mp.lab.speaker import PORT, SPEAKS

KINDS = 4
_BEAT_S = 0.2
_END_S = 60.0
_ASK = b"GET %s HTTP/1.1\r\nHost: vip\r\n\r\n"
_PIECE = 4096


class _Clients:
    def __init__(self, vip: str, size: int) -> None:
        self._vip = vip
        self._size = size  #: of /big, in bytes
        self._begun = asyncio.Semaphore(0)
        self._over = asyncio.Event()

    async def run(self, sources: Sequence[str]) -> None:
        tasks = []
        for source in sources:
            for kind in (self._download, self._idle, self._upload, self._listen):
                tasks.append(asyncio.create_task(kind(source), name=f"{kind.__name__} {source}"))
            await self._begun.acquire()
        for _ in range(len(tasks) - len(sources)):
            await self._begun.acquire()
        print(len(tasks), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        self._over.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _END_S)
        broken = [
            f"{task.get_name()}: {each}"
            for task, each in zip(tasks, results, strict=True)
            if each is not True
        ]
        print(len(results) - len(broken), broken[:3], flush=True)

    async def _connect(self, port: int, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._vip, port, local_addr=(source, 0), limit=_PIECE)

    async def _download(self, source: str) -> bool:
        reader, writer = await self._connect(80, source)
        name = await _who(reader, writer)
        writer.write(_ASK % b"/big")
        wanted = await _length(reader)
        self._begun.release()
        got = 0
        while got < wanted and (piece := await reader.read(_PIECE)):
            got += len(piece)
            await asyncio.sleep(0 if self._over.is_set() else _BEAT_S)
        return got == self._size and await _who(reader, writer) == name

    async def _idle(self, source: str) -> bool:
        reader, writer = await self._connect(80, source)
        name = await _who(reader, writer)
        self._begun.release()
        await self._over.wait()
        return await _who(reader, writer) == name

    async def _upload(self, source: str) -> bool:
        reader, writer = await self._connect(PORT, source)
        self._begun.release()
        heard: set[bytes] = set()
        while not self._over.is_set() or not heard:
            writer.write(b"x" * 1000 + b"\n")
            await asyncio.sleep(_BEAT_S)
            heard.add(await reader.readline())
        echoes = [line for line in heard if not line.endswith(SPEAKS)]
        return len(echoes) == 1 and echoes[0].endswith(b" " + b"x" * 1000 + b"\n")

    async def _listen(self, source: str) -> bool:
        reader, writer = await self._connect(PORT, source)
        writer.write(b"hello\n")
        name = (await reader.readline()).split()[0]
        self._begun.release()
        return await reader.readline() == name + SPEAKS


async def _who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(_ASK % b"/")
    return await reader.readexactly(await _length(reader))


async def _length(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    return int(head.split("content-length:")[1].split()[0])


async def _main(vip: str, size: str, *sources: str) -> None:
    await _Clients(vip, int(size)).run(sources)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
