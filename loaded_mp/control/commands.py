"""What a running daemon can be asked."""

from typing import Protocol

from loaded_mp.config.model import Backend, Config
from loaded_mp.config.saving import Unsaved
from loaded_mp.status import Outcome, Status


class Daemon(Protocol):
    """What the commands need of the daemon."""

    def status(self) -> Status: ...

    async def reload(self, dry_run: bool) -> Outcome: ...

    async def compare(self, config: Config) -> Outcome: ...

    async def add(self, service: str, backend: Backend) -> Outcome: ...

    async def remove(self, backend: str, service: str | None) -> Outcome: ...

    def unsaved(self) -> Unsaved: ...

    async def restart(self) -> list[str]: ...

    def stop(self) -> None: ...


class Commands:
    """Each public method is a command: its arguments come by name, its answer goes as JSON (pydantic)."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def status(self) -> Status:
        """What the daemon says of itself."""
        return self._daemon.status()

    async def reload(self, dry_run: bool = False) -> Outcome:
        """Read the configuration again and take it over, or only say what that would change."""
        return await self._daemon.reload(dry_run)

    async def compare(self, config: Config) -> Outcome:
        """Say what it would change to take over this configuration."""
        return await self._daemon.compare(config)

    async def add(self, service: str, backend: Backend) -> Outcome:
        """Add a backend to a service."""
        return await self._daemon.add(service, backend)

    async def remove(self, backend: str, service: str | None = None) -> Outcome:
        """Take a backend, by name or address, out of all services or of the one that is named."""
        return await self._daemon.remove(backend, service)

    async def unsaved(self) -> Unsaved:
        """What was changed at run time, and the file that it may be written into."""
        return self._daemon.unsaved()

    async def restart(self) -> list[str]:
        """Become the program anew, with the same memory and queues; what keeps the daemon from it."""
        return await self._daemon.restart()

    async def stop(self) -> None:
        """End, as at SIGTERM; the answer comes before that."""
        self._daemon.stop()


#: Their names.
COMMANDS = tuple(name for name in vars(Commands) if not name.startswith("_"))
