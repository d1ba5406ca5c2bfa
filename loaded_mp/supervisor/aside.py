"""What takes its time is done beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from loaded_mp.network.errors import NetworkError
from loaded_mp.network.patience import Patience, patience

Result = TypeVar("Result")

_PATIENCE_S = 30.0


async def aside(work: Callable[[], Result], patience_s: float = _PATIENCE_S) -> Result:
    """Do something slow in a thread of its own that ends within this call; the loop goes on meanwhile.

    No program that `work` calls is waited for longer than `patience_s`, and none at all once this is
    cancelled. Raises NetworkError if there is no thread to be had.
    """
    mine = Patience(patience_s)

    def patiently() -> Result:
        patience.set(mine)
        return work()

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            done = asyncio.get_running_loop().run_in_executor(pool, patiently)
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                mine.lose()
                await asyncio.wait([done])
                done.exception()  # asyncio logs what nobody has looked at
                raise
            return done.result()
        except RuntimeError as error:  # no thread to be had, here or within `work`
            raise NetworkError(str(error)) from error
