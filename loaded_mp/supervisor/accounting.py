"""Traffic of the services that the kernel forwards, as its rules count it."""

from collections.abc import Iterable

from loaded_mp.memory.snapshot import MARK
from loaded_mp.network.conntrack import Counted, read_counters
from loaded_mp.supervisor.snapshots import Part


class Accounting:
    """Counters that only rise, although the kernel's begin anew whenever the rules are replaced."""

    def __init__(self) -> None:
        self._before: dict[int, Counted] = {}  #: by mark: what rules that are gone had counted
        self._last: dict[int, Counted] = {}

    def read(self, parts: Iterable[Part]) -> dict[int, Counted]:
        """What was forwarded so far, by backend id. Raises NetworkError."""
        families = tuple({part.family for part in parts if part.service.forwarding == "conntrack"})
        now = read_counters(families) if families else {}
        for mark, last in self._last.items():
            if any(new < old for new, old in zip(now.get(mark, Counted()), last, strict=True)):
                self._before[mark] = _sum(self._before.get(mark, Counted()), last)
        self._last = now
        return {
            mark - MARK: _sum(self._before.get(mark, Counted()), now.get(mark, Counted()))
            for mark in self._before.keys() | now.keys()
        }

    def forget(self, number: int) -> None:
        """A backend id is used by another backend from now on."""
        self._before.pop(MARK + number, None)
        self._last.pop(MARK + number, None)


def _sum(one: Counted, other: Counted) -> Counted:
    return Counted(*(a + b for a, b in zip(one, other, strict=True)))
