"""Loading a configuration in a bounded time, also from a file system that hangs.

Nothing ends a read there but the end of its process, and perhaps not even that: a process of its own reads.
"""

import asyncio
import logging
import os
import pickle
import signal
from collections.abc import Callable
from typing import BinaryIO, NoReturn

from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Config
from loaded_mp.log import event

log = logging.getLogger(__name__)
LOAD_TIMEOUT_S = 10.0


async def load_bounded(load: Callable[[], Config], timeout_s: float = LOAD_TIMEOUT_S) -> Config:
    """What `load` gives; the event loop goes on meanwhile. It forks: a thread that runs meanwhile must hold
    no lock that `load` takes.

    Raises ConfigError if `load` does, or if it gives nothing in time; OSError if there is no process for it.
    """
    receiver, sender = os.pipe()
    with open(receiver, "rb") as answers:
        with open(sender, "wb"):
            child = os.fork()
            if not child:
                _load(load, sender)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _read(answers)
        except TimeoutError:
            text = f"was not read within {timeout_s:g} s; does it lie on a file system that hangs?"
            raise ConfigError(Mistake("the configuration", "", text)) from None
        finally:
            os.kill(child, signal.SIGKILL)
            _reap_at_its_end(child)
    if not answer:
        raise ConfigError(Mistake("the configuration", "", "its reader ended early; the log says why"))
    loaded: Config | tuple[Mistake, ...] = pickle.loads(answer)
    if isinstance(loaded, Config):
        return loaded
    raise ConfigError(*loaded)


def _load(load: Callable[[], Config], sender: int) -> NoReturn:
    """The child: load, send, end."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # Queues and sockets must not live on in a process that perhaps cannot be ended.
        os.closerange(3, sender)
        os.closerange(sender + 1, os.sysconf("SC_OPEN_MAX"))
        loaded: Config | tuple[Mistake, ...]
        try:
            loaded = load()
        except ConfigError as error:
            loaded = error.mistakes
        with open(sender, "wb") as answers:
            pickle.dump(loaded, answers)
    except BaseException:
        log.exception(event("load-failed"))
    finally:
        os._exit(0)


async def _read(answers: BinaryIO) -> bytes:
    """All that comes through a pipe."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), answers
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _reap_at_its_end(child: int) -> None:
    """Take note of the child's end, whenever that is."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(child)

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        os.waitpid(child, 0)

    loop.add_reader(descriptor, reap)
