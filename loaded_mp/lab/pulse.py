"""Clients that connect anew again and again.

At a line on its input it prints the longest that one was not served since the line before, in milliseconds.
"""

import asyncio
import sys
import time

from loaded_mp.lab.speaker import PORT

_PATIENCE_S = 0.1
_PAUSE_S = 0.02


async def _beat(vip: str, source: str, gaps_s: dict[str, float]) -> None:
    last_s = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(vip, PORT, local_addr=(source, 0))
                writer.write(b"hello\n")
                await reader.readline()
            writer.transport.abort()
            now_s = time.monotonic()
            gaps_s[source] = max(gaps_s[source], now_s - last_s)
            last_s = now_s
        except OSError:  # TimeoutError too
            gaps_s[source] = max(gaps_s[source], time.monotonic() - last_s)
        await asyncio.sleep(_PAUSE_S)


async def _main(vip: str, *sources: str) -> None:
    gaps_s = dict.fromkeys(sources, 0.0)
    beats = [asyncio.create_task(_beat(vip, source, gaps_s)) for source in sources]
    while await asyncio.to_thread(sys.stdin.readline):
        print(round(1000 * max(gaps_s.values())), flush=True)
        gaps_s.update(dict.fromkeys(sources, 0.0))
    for beat in beats:
        beat.cancel()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
