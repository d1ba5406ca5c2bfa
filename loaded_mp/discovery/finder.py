"""Rounds of looking for machines: who answers and passes the checks joins, who vanishes leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from loaded_mp.checks.check import Finding, LocalError, SilentError
from loaded_mp.checks.runner import Target
from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.discovery.echo import Heard, Question, hear, questions
from loaded_mp.discovery.found import Absences, belongs, candidates, is_vip, members, networks, some
from loaded_mp.fields import Address, Endpoint, Interface
from loaded_mp.log import event
from loaded_mp.network.errors import NetworkError

log = logging.getLogger(__name__)

#: Answers are waited for so long at most.
_ANSWER_S = 1.0
#: Machines that are asked at the same moment whether they serve; others that answered are asked later.
AT_ONCE = 64
#: Until a changed configuration is looked at.
_LOOK_S = 1.0
#: Whose checks these are: of nobody who has a number yet.
_NOBODY = -1


class Members(Protocol):
    """Changes of what runs. Both give what is wrong with the change, or nothing."""

    async def add(self, service: str, backend: Backend) -> list[str]:
        """Add a backend to a service."""

    async def remove(self, service: str, endpoint: Endpoint) -> list[str]:
        """Take a backend out of a service."""


@dataclass
class Finder:
    """Looks for machines for every service that has `discovery`."""

    config: Callable[[], Config]  #: that runs now
    members: Members
    fault: Callable[[str, Endpoint], str | None]  #: why a service's backend is down; None: it is up
    attempt: Callable[[Target], Awaitable[Finding]]  #: raises LocalError, SilentError
    #: Of this machine, with their interfaces. Raises NetworkError.
    addresses: Callable[[], Awaitable[Sequence[tuple[str, Interface]]]]
    hear: Callable[[Sequence[Question], float], Awaitable[Heard]] = hear
    _absences: dict[str, Absences] = field(default_factory=dict)  #: by service
    _due_s: dict[str, float] = field(default_factory=dict)  #: by service, of the loop's clock
    _said: dict[str, str] = field(default_factory=dict)  #: what hinders, by service

    async def run(self) -> None:
        """Look for machines until cancelled."""
        now_s = asyncio.get_running_loop().time
        while True:
            services = self.config().services
            due = [each for each in services if now_s() >= self._due_s.get(each.name, 0)]
            for each in due:
                self._due_s[each.name] = now_s() + (each.discovery.interval_s if each.discovery else _LOOK_S)
            await asyncio.gather(*(self.look(each) for each in due))
            names = {each.name for each in services}
            for kept in (self._absences, self._due_s, self._said):
                for name in kept.keys() - names:
                    del kept[name]
            next_s = min((self._due_s[name] for name in names), default=0.0)
            await asyncio.sleep(min(_LOOK_S, max(0.0, next_s - now_s())))

    async def look(self, service: Service) -> None:
        """One round for one service."""
        causes = await (self._look(service) if service.discovery else self._end(service))
        cause = "; ".join(causes)
        if cause and cause != self._said.get(service.name):
            log.warning(event("discovery-hindered", service=service.name, cause=cause))
        self._said[service.name] = cause

    async def _end(self, service: Service) -> list[str]:
        """Let all leave who came by discovery; what hinders that."""
        causes = []
        for address in members(service):
            causes += await self._leave(service, address, "discovery is off")
        return causes

    async def _look(self, service: Service) -> list[str]:
        """Ask who is there, and let machines leave and join; what hinders that."""
        try:
            addresses = await self.addresses()
        except NetworkError as error:
            return [str(error)]
        heard = await self._ask(service, addresses)
        own = {address.ip for _, address in addresses}
        return [
            *heard.faults,
            *await self._see_off(service, heard),
            *await self._welcome(service, heard, own),
        ]

    async def _ask(self, service: Service, addresses: Sequence[tuple[str, Interface]]) -> Heard:
        assert service.discovery
        config = self.config()
        interface = config.network.private_interface or ""
        where = networks(service, config)
        asked = questions(
            interface,
            [each for each in addresses if not is_vip(each[1].ip, config)],
            where,
            config.network.broadcast,
        )
        sources = {question.source.version for question in asked}
        without = ", ".join(str(network) for network in where if network.version not in sources)
        heard = await self.hear(asked, min(_ANSWER_S, service.discovery.interval_s))
        if not without:
            return heard
        return Heard(heard.answered, False, (*heard.faults, f"{interface} has no address in {without}"))

    async def _see_off(self, service: Service, heard: Heard) -> list[str]:
        """Let those leave that are no longer there; what hinders that."""
        assert service.discovery
        there = members(service)
        silent = {each for each in there if heard.whole and each not in heard.answered}
        faults = {
            each: fault for each in there if (fault := self.fault(service.name, Endpoint(each))) is not None
        }
        absences = self._absences.setdefault(service.name, Absences())
        away = absences.after(there, set(there) - silent - faults.keys(), service.discovery.fall)
        causes = []
        for address in there:
            if not belongs(address, service, self.config()):
                causes += await self._leave(service, address, "outside of the networks of discovery")
            elif address in away:
                silence = f"no answer in {service.discovery.fall} rounds"
                causes += await self._leave(
                    service, address, silence if address in silent else faults[address]
                )
        return causes

    async def _welcome(self, service: Service, heard: Heard, own: Set[Address]) -> list[str]:
        """Let those join that serve, as long as there is room; what hinders that."""
        config = self.config()
        # Meanwhile it may have been changed.
        now = next((each for each in config.services if each.name == service.name), None)
        if now is None or now.discovery is None:
            return []
        new = candidates(heard.answered, now, config, own)
        room = now.discovery.most - len(members(now))
        if new and room <= 0:
            return [f"{now.discovery.most} machines have joined, which is the most"]
        asked = some(new, min(room, AT_ONCE))
        serve = await asyncio.gather(*(self._serves(now, address) for address in asked))
        for address in (each for each, good in zip(asked, serve, strict=True) if good):
            backend = Backend(address=Endpoint(address), weight=now.discovery.weight, discovered=True)
            if refused := await self.members.add(service.name, backend):
                return [f"{address} cannot join: {'; '.join(refused)}"]
            log.info(event("joined", service=service.name, backend=address, weight=backend.weight))
        return []

    async def _serves(self, service: Service, address: Address) -> bool:
        """Whether it passes the checks now."""
        backend = Backend(address=Endpoint(address))
        targets = [Target(_NOBODY, service.asked(check, backend), check) for check in service.checks]
        passed = await asyncio.gather(*map(self._passes, targets))
        return any(passed) if service.checks_needed == "any" else all(passed)

    async def _passes(self, target: Target) -> bool:
        try:
            return (await self.attempt(target)).fault is None
        except (LocalError, SilentError):
            return False

    async def _leave(self, service: Service, address: Address, cause: str) -> list[str]:
        """What hinders it."""
        if refused := await self.members.remove(service.name, Endpoint(address)):
            return [f"{address} cannot leave: {'; '.join(refused)}"]
        log.warning(event("left", service=service.name, backend=address, cause=cause))
        return []
