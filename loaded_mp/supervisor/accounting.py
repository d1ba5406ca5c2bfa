"""Traffic that others than workers count, such as the kernel's rules."""

from collections import Counter

from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Counted
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.services import Services


class Accounting:
    """Counters that only rise, although the kernel's begin anew whenever the rules are replaced."""

    def __init__(self) -> None:
        self._before: dict[int, Counter[BackendCounter]] = {}  #: by backend id: what is gone had counted
        self._last: dict[int, Counted] = {}

    def read(self, services: Services) -> dict[int, Counted]:
        """What was counted so far, by backend id. Raises NetworkError."""
        now: dict[int, Counted] = {}
        for name, forwarding in FORWARDINGS.items():
            families = {part.family for part in services.parts if part.service.forwarding == name}
            if families:
                now |= forwarding.counted(tuple(sorted(families)))
        for number, last in self._last.items():
            if any(now.get(number, {}).get(column, 0) < value for column, value in last.items()):
                self._before.setdefault(number, Counter()).update(last)
        self._last = now
        return {
            number: Counter(self._before.get(number, {})) + Counter(now.get(number, {}))
            for number in self._before.keys() | now.keys()
        }

    def forget(self, number: int) -> None:
        """A backend id is used by another backend from now on."""
        self._before.pop(number, None)
        self._last.pop(number, None)
