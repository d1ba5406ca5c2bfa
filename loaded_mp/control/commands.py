"""What a running daemon can be asked."""

from typing import Protocol

from loaded_mp.status import Status


class Daemon(Protocol):
    """What the commands need of the daemon."""

    def status(self) -> Status: ...

    async def reload(self) -> list[str]: ...

    async def restart(self) -> list[str]: ...

    def stop(self) -> None: ...


class Commands:
    """Each public method is a command: its arguments come by name, its answer goes as JSON (pydantic)."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def status(self) -> Status:
        """What the daemon says of itself."""
        return self._daemon.status()

    async def reload(self) -> list[str]:
        """Read the configuration again; the mistakes that kept the daemon from it."""
        return await self._daemon.reload()

    async def restart(self) -> list[str]:
        """Become the program anew, with the same memory and queues; what keeps the daemon from it."""
        return await self._daemon.restart()

    async def stop(self) -> None:
        """End, as at SIGTERM; the answer comes before that."""
        self._daemon.stop()


#: Their names.
COMMANDS = tuple(name for name in vars(Commands) if not name.startswith("_"))
