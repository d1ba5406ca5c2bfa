"""What a running daemon can be asked."""

import typing
from typing import Annotated

from pydantic import Field

from loaded_mp.config.model import Backend, Config, SchedulerName
from loaded_mp.config.saving import Unsaved
from loaded_mp.fields import Address, AddressField, Listener, Network, NetworkField, Port, Weight
from loaded_mp.status import (
    CheckStatus,
    Event,
    Explanation,
    FlowsStatus,
    Forecast,
    Outcome,
    ServiceStatus,
    Status,
    Wanted,
)

#: So many flows are listed at the most.
MOST_FLOWS = 1_000
Most = Annotated[int, Field(ge=0, le=MOST_FLOWS)]
_TCP = Listener(protocol="tcp")
Mark = Annotated[int, Field(ge=0, le=0xFFFF_FFFF)]
#: Less than a client waits for an answer.
WaitSeconds = Annotated[float, Field(ge=0, le=8)]


class CommandError(Exception):
    """A command cannot be done as it was asked for; the text says why, for people."""


class Daemon(typing.Protocol):
    """What the commands need of the daemon."""

    async def status(self, service: str | None = None) -> Status: ...

    async def want(self, wanted: Wanted, backend: str, service: str | None) -> list[ServiceStatus]: ...

    async def weigh(self, weight: int | None, backend: str, service: str | None) -> list[ServiceStatus]: ...

    def checks_of(self, backend: str | None, service: str | None) -> list[CheckStatus]: ...

    async def open_flows(
        self, source: Network | None, backend: str | None, service: str | None, most: int
    ) -> FlowsStatus: ...

    async def move(self, source: Address, backend: str, service: str | None) -> FlowsStatus: ...

    def explain(
        self, source: Address, vip: Address, protocol: Listener, port: int | None, mark: int
    ) -> Explanation: ...

    async def what_if(
        self,
        weights: dict[str, int],
        without: list[str],
        add: list[Backend],
        scheduler: str | None,
        service: str | None,
    ) -> Forecast: ...

    async def events_after(self, number: int, wait_s: float) -> list[Event]: ...

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

    async def status(self, service: str | None = None) -> Status:
        """What the daemon says of itself; with `service` only of that one."""
        return await self._daemon.status(service)

    async def drain(self, backend: str, service: str | None = None) -> list[ServiceStatus]:
        """Give a backend no new flows; those that it has stay. What it is now, as in `status`."""
        return await self._daemon.want(Wanted.DRAIN, backend, service)

    async def maintenance(self, backend: str, service: str | None = None) -> list[ServiceStatus]:
        """Send nothing to a backend: its flows move at their next packet. What it is now, as in `status`."""
        return await self._daemon.want(Wanted.MAINTENANCE, backend, service)

    async def ready(self, backend: str, service: str | None = None) -> list[ServiceStatus]:
        """End `drain` and `maintenance` of a backend. What it is now, as in `status`."""
        return await self._daemon.want(Wanted.READY, backend, service)

    async def weight(
        self, backend: str, weight: Weight | None = None, service: str | None = None
    ) -> list[ServiceStatus]:
        """Give a backend another weight than the configured one, or that again. What it is now."""
        return await self._daemon.weigh(weight, backend, service)

    async def checks(self, backend: str | None = None, service: str | None = None) -> list[CheckStatus]:
        """What checks found the last time: of all backends, or of one."""
        return self._daemon.checks_of(backend, service)

    async def flows(
        self,
        source: NetworkField | None = None,
        backend: str | None = None,
        service: str | None = None,
        most: Most = MOST_FLOWS,
    ) -> FlowsStatus:
        """Open flows of a source (an address or a network), a backend, a service: how many, and the first."""
        return await self._daemon.open_flows(source, backend, service, most)

    async def move(self, source: AddressField, backend: str, service: str | None = None) -> FlowsStatus:
        """Let the flows of a source go to a backend from their next packet on. What they are now."""
        return await self._daemon.move(source, backend, service)

    async def explain(
        self,
        source: AddressField,
        vip: AddressField,
        protocol: Listener = _TCP,
        port: Port | None = None,
        mark: Mark = 0,
    ) -> Explanation:
        """What would become of a packet of a client for a VIP now, and why. Changes nothing."""
        return self._daemon.explain(source, vip, protocol, port, mark)

    async def whatif(
        self,
        weights: dict[str, Weight] | None = None,
        without: list[str] | None = None,
        add: list[Backend] | None = None,
        scheduler: SchedulerName | None = None,
        service: str | None = None,
    ) -> Forecast:
        """What would become of flows, open and new, with other weights by backend, without some backends,
        with some more, or with another scheduler. Changes nothing."""
        return await self._daemon.what_if(weights or {}, without or [], add or [], scheduler, service)

    async def events(self, after: int = 0, wait_s: WaitSeconds = 0) -> list[Event]:
        """The last changes that have a higher number; if there are none, wait for one."""
        return await self._daemon.events_after(after, wait_s)

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
