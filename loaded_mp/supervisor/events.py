"""The last events: what the log says from info on, kept where the next supervisor finds it."""

import asyncio
import logging
import os
from collections import deque

from pydantic import ValidationError

from loaded_mp import log
from loaded_mp.memory.shared import EVENT_BYTES, MAX_EVENTS, SharedMemory, read_events, write_event
from loaded_mp.status import Event

#: Who waits for events holds a connection: others would not be answered if many did.
_MOST_WAITING = 8
#: Texts are cut to the first of these lengths with which an event has room.
_LENGTHS = (EVENT_BYTES, 100, 20, 5)


class Events(logging.Handler):
    """A log handler that keeps the last MAX_EVENTS events."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._memory: SharedMemory | None = None
        self._told = asyncio.Event()
        self._waiting = 0
        self._kept: deque[Event] = deque(maxlen=MAX_EVENTS)

    def keep_in(self, memory: SharedMemory) -> None:
        """Go on with the events in a memory, those so far behind them, and write down all from now on."""
        self._loop = asyncio.get_running_loop()
        self.acquire()
        try:
            fresh = list(self._kept)
            self._kept.clear()
            for text in read_events(memory):
                try:
                    self._kept.append(Event.model_validate_json(text))
                except ValidationError:  # its writer was killed
                    continue
            self._memory = memory
            for each in fresh:
                self._keep(each)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, if it is an event of this process: those of workers are told by what becomes of them."""
        if not isinstance(record.msg, log.Event) or os.getpid() != self._process:
            return
        try:
            self._keep(_event(record, record.msg))
        except ValueError:  # what is no text, as in the name of a file
            self.handleError(record)
        if self._loop:
            self._loop.call_soon_threadsafe(self._told.set)

    def _keep(self, event: Event) -> None:
        number = self._kept[-1].number + 1 if self._kept else 1
        event, text = _fitting(event.model_copy(update={"number": number}))
        self._kept.append(event)
        if self._memory:
            write_event(self._memory, text)

    async def after(self, number: int, wait_s: float) -> list[Event]:
        """Those with a higher number; if there are none, those that come within a time."""
        found = self._after(number)
        if not found and self._waiting < _MOST_WAITING:
            self._waiting += 1
            self._told.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._told.wait()
            except TimeoutError:
                pass
            finally:
                self._waiting -= 1
            found = self._after(number)
        return found

    def _after(self, number: int) -> list[Event]:
        kept = list(self._kept)
        if kept and number > kept[-1].number:  # of a daemon before, whose memory is gone
            return kept
        return [each for each in kept if each.number > number]


def _event(record: logging.LogRecord, line: log.Event) -> Event:
    more = dict(line.values)
    return Event.model_validate(
        {
            "number": 0,
            "time_s": record.created,
            "level": record.levelname.lower(),
            "event": line.name,
            "service": more.pop("service", ""),
            "backend": more.pop("backend", ""),
            "cause": more.pop("cause", ""),
            "more": more,
        }
    )


def _fitting(event: Event) -> tuple[Event, bytes]:
    """The event, its texts cut so that it has room, and how it is written down."""
    for length in _LENGTHS:
        cut = event.model_copy(
            update={
                "service": event.service[:length],
                "backend": event.backend[:length],
                "cause": event.cause[:length],
                "more": {key: value[:length] for key, value in event.more.items()},
            }
        )
        text = cut.model_dump_json().encode()
        if len(text) <= EVENT_BYTES:
            return cut, text
    bare = event.model_copy(update={"service": "", "backend": "", "cause": "", "more": {}})
    return bare, bare.model_dump_json().encode()
