"""What has changed, and when it holds."""

import asyncio
from collections.abc import Callable

from building import service

from loaded_mp.config.model import Config
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.publisher import Publisher


def generation_when_settled(told: int, running: Callable[[], list[int]] = list) -> int:
    """The generation of workers once `told` changes are said to hold; `running` workers never stamp."""
    memory = new_shared_memory(1_024, 1)
    config = Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}),))
    publisher = Publisher(memory, running)
    changes = Changes(Backends(memory, config), publisher)

    async def settle() -> int:
        publishing = asyncio.create_task(changes.run())
        for _ in range(told):
            changes.tell()
            await changes.settled()
        publishing.cancel()
        return publisher.generation

    return asyncio.run(settle())


def test_what_is_settled_is_published() -> None:
    assert generation_when_settled(0) == 0
    assert generation_when_settled(1) == 1
    assert generation_when_settled(3) == 3


def test_a_worker_that_hangs_keeps_nobody_waiting() -> None:
    # The first generation is stamped by none, so that the second one waits for that for ever.
    assert generation_when_settled(2, lambda: [0]) == 1
