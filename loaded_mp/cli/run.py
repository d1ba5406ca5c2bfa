"""Running the daemon in the foreground."""

import asyncio
import gc
import logging

from loaded_mp.config.model import Config
from loaded_mp.config.source import Source
from loaded_mp.control.server import AlreadyRunningError
from loaded_mp.datapath.queue import QueueError
from loaded_mp.log import event, start_log
from loaded_mp.network.errors import NetworkError
from loaded_mp.services import TooLargeError
from loaded_mp.supervisor.children import StartError
from loaded_mp.supervisor.daemon import Daemon

log = logging.getLogger(__name__)


def run(source: Source, config: Config, *, network_setup: bool, debug: bool) -> int:
    """Run until SIGTERM or SIGINT; the exit status: 1 if the start failed or something was left, else 0."""
    gc.freeze()  # what was imported stays, and workers share it
    forced = {"log_level": "debug"} if debug else {}
    config = config.model_copy(update=forced)
    start_log(config.log_level)

    def load() -> Config:
        return source.load().model_copy(update=forced)

    async def whole_life() -> bool:
        return await Daemon(config, load, network_setup, source.toml).run()

    try:
        return 0 if asyncio.run(whole_life()) else 1
    except (AlreadyRunningError, QueueError, NetworkError, StartError, TooLargeError, OSError) as error:
        log.error(event("start-failed", cause=str(error)))
        return 1
    finally:
        gc.freeze()  # Python looks for garbage at its end, which takes longer than all else of a stop
