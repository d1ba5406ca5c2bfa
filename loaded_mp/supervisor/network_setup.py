"""What a daemon changes on this machine, while its event loop goes on."""

from typing import NamedTuple

from loaded_mp.network import setup
from loaded_mp.network.changes import Change
from loaded_mp.plan import kept, plan
from loaded_mp.services import Services
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.aside import aside
from loaded_mp.supervisor.differences import rule_differences
from loaded_mp.supervisor.drift import Drift

#: A stop is waited for: by systemd, by people.
_TAKE_DOWN_PATIENCE_S = 5.0


class Planned(NamedTuple):
    """What is to be on this machine."""

    changes: tuple[Change, ...]
    kept: tuple[Change, ...]  #: what is put back when others undo it


class NetworkSetup:
    """Changes of this machine, one at a time. If they are not `wanted`, nothing is done: others make them."""

    def __init__(self, drift: Drift, accounting: Accounting, wanted: bool) -> None:
        self._drift = drift
        self._accounting = accounting
        self._wanted = wanted

    async def planned(self, services: Services) -> Planned:
        """What these services need. Raises NetworkError."""
        if not self._wanted:
            return Planned((), ())
        host = await aside(setup.read_host)
        return Planned(plan(services, host).changes, kept(services, host))

    def differences(self, planned: Planned) -> list[str]:
        """What would change on this machine, in lines for people."""
        return list(rule_differences(self._drift.wanted, planned.kept)) if self._wanted else []

    async def make(self, services: Services, taken_over: bool) -> None:
        """Bring this machine to it; nothing is touched if that stands already. Raises NetworkError."""
        planned = await self.planned(services)
        async with self._drift.lock:
            if self._wanted and not (taken_over and await aside(lambda: setup.stands(planned.changes))):
                await aside(lambda: setup.change(planned.changes))
            self._drift.wanted = planned.kept

    async def change(self, before: Services, planned: Planned) -> None:
        """Bring this machine from what services needed to what is planned; their counters go on.

        Raises NetworkError; then it is as it was.
        """
        if not self._wanted:
            return
        async with self._drift.lock, self._accounting.beginning_anew(before):
            await aside(lambda: setup.change(planned.changes))
            self._drift.wanted = planned.kept

    async def take_down(self) -> None:
        """Take everything back. Raises NetworkError if something cannot be; it stays on record."""
        if not self._wanted:
            return
        async with self._drift.lock:
            await aside(setup.take_down, _TAKE_DOWN_PATIENCE_S)
