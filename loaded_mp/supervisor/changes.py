"""What has changed goes to the workers, and connections to backends that went are let go of."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from loaded_mp.log import event
from loaded_mp.network.errors import NetworkError
from loaded_mp.services import Services
from loaded_mp.supervisor.aside import aside
from loaded_mp.supervisor.backends import Backends, Moving
from loaded_mp.supervisor.publisher import STAMP_TIMEOUT_S, Publisher
from loaded_mp.supervisor.state import Stops

log = logging.getLogger(__name__)

#: Between two steps of weights that rise.
_RISE_S = 1.0
#: Who asks for the state waits no longer for it to hold: a worker that hangs keeps it from that.
_SETTLED_S = 1.0


class Changes:
    """Collects changes of backends."""

    def __init__(self, backends: Backends, publisher: Publisher) -> None:
        self._backends = backends
        self._publisher = publisher
        self._told = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._forgetting = asyncio.Lock()
        self._gone: set[int] = set()  #: backends whose connections are to be forgotten

    def tell(self, *gone: int) -> None:
        """Something has changed; connections to the backends with these ids are over."""
        self._gone.update(gone)
        self._settled.clear()
        self._told.set()

    async def settled(self) -> None:
        """Wait until what was told holds for the next packet, for a bounded time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLED_S):
                await self._settled.wait()

    async def run(self) -> None:
        """Publish what was told, until cancelled."""
        while True:
            await self._told.wait()
            self._told.clear()
            await self._publisher.publish(self._backends.fill)
            if not self._told.is_set():
                self._settled.set()
            self._backends.note()
            await self.forget_connections(())

    async def rise(self) -> None:
        """Publish weights that rise by themselves, step by step, until cancelled."""
        rose = False
        while True:
            await asyncio.sleep(_RISE_S)
            rises = self._backends.rise
            if rises or rose:
                await self._publisher.publish(self._backends.fill)
            rose = rises

    async def say_goodbye(self, numbers: Iterable[int]) -> None:
        """Tell both ends of these backends' TCP connections that they are over.

        In the first half of `goodbye_s` data and the end of data, from either side, reach the other one as a
        reset. In the second half those of backends do so no more, and what clients send is left to this
        machine, which answers with a reset: who spoke alone is told when it says its words again.
        """
        stopping, takes_s = list(numbers), self._backends.services.config.goodbye_s
        if not (takes_s and stopping):
            return
        for stops in (Stops.ENDING, Stops.ENDED):
            self._backends.stop(stopping, stops)
            with suppress(TimeoutError):
                async with asyncio.timeout(STAMP_TIMEOUT_S):
                    await self._publisher.publish(self._backends.fill)
                    # What others than workers carry comes to be decided again.
                    await self.forget_connections(stopping)
            if stops is Stops.ENDING:
                log.info(event("goodbye", backends=len(stopping), takes_s=takes_s))
            await asyncio.sleep(takes_s / 2)

    async def hold(self, before: Services) -> Moving:
        """Publish what has changed, and hold what goes over to another way of forwarding: its connections."""
        self._backends.hold(before)
        moving: Moving = []
        try:
            if self._backends.holds:
                moving = await aside(self._backends.moving)
            await self._publisher.publish(self._backends.fill)
            if self._backends.holds:
                await self._publisher.stamped()
                await aside(self._backends.leave)
        except NetworkError as error:
            log.error(event("connections-kept", cause=str(error)))
            await self._publisher.publish(self._backends.fill)
        return moving

    async def go_on(self, moving: Moving) -> None:
        """Let what was held go on in the present way of forwarding.

        It is known before anything passes: what would begin without a connection would be another one.
        """
        if not self._backends.holds:
            return
        try:
            await aside(partial(self._backends.take_over, moving))
        except NetworkError as error:
            log.error(event("connections-lost", cause=str(error), effect="until their clients speak"))
        self._backends.let_go()
        await self._publisher.publish(self._backends.fill)

    async def forget_connections(self, gone: Iterable[int]) -> None:
        """Let go of the connections to these backends, and to those that were told."""
        self._gone.update(gone)
        async with self._forgetting:
            if self._gone:
                await self._publisher.stamped()
            while self._gone:
                try:
                    await aside(partial(self._backends.forget_connections, self._gone.pop()))
                except NetworkError as error:
                    log.error(event("connections-kept", cause=str(error)))
