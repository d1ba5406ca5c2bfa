"""The services and backends that run now: what is configured, what checks say, what follows for workers."""

import numpy as np

from loaded_mp.config.model import Address, Check, Config
from loaded_mp.datapath.balance import REPLY
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.memory.snapshot import MAX_BACKENDS, Snapshot
from loaded_mp.supervisor.snapshots import Ids, Part, fill


class Backends:
    """Everything by backend id. A backend counts as up until a check says otherwise."""

    def __init__(self, memory: SharedMemory, config: Config) -> None:
        """Raises TooLargeError if workers have no room for the configuration."""
        self._memory = memory
        self._ids = Ids()
        self._known: set[int] = set()
        self.up = np.ones(MAX_BACKENDS, np.bool_)
        self.parts: tuple[Part, ...] = ()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over a configuration. Raises TooLargeError and then changes nothing."""
        self.parts = self._ids.expand(config)
        for number in self._ids.backends.held() - self._known:
            self.up[number] = True
            self._memory.traffic[:, number] = 0
        for part in self.parts:
            if part.service.check is None:
                self.up[list(part.backends)] = True
        self._known = self._ids.backends.held()

    def removed(self) -> list[int]:
        """Values that flows may still hold although the configuration has them no more."""
        ids = self._ids
        backends = {number for part in self.parts for number in part.backends}
        vips = {number for part in self.parts for number in part.vips}
        return [
            *(ids.backends.held() - backends),
            *(REPLY + number for number in ids.vips.held() - vips),
        ]

    def release(self, value: int) -> None:
        """Let a removed id be used again; no entry may hold it any more."""
        if value >= REPLY:
            self._ids.vips.release(value - REPLY)
        else:
            self._ids.backends.release(value)
            self._known.discard(value)

    def release_services(self) -> None:
        """Let the ids of removed services be used again, once all of `removed` is released."""
        for number in self._ids.services.held() - {part.id for part in self.parts}:
            self._ids.services.release(number)

    def effective_weight(self, part: Part, number: int) -> int:
        """The share of new flows that a backend has now."""
        return part.backends[number].weight if self.up[number] else 0

    def fill(self, snapshot: Snapshot) -> None:
        """Write the present state into a buffer that nobody reads."""
        weights = np.zeros(MAX_BACKENDS, np.int64)
        for part in self.parts:
            for number, backend in part.backends.items():
                weights[number] = backend.weight
        fill(snapshot, self.parts, self.up, weights)

    def checks(self) -> dict[int, tuple[Address, Check]]:
        """What is to be checked, by backend id."""
        return {
            number: (backend.address, part.service.check)
            for part in self.parts
            if part.service.check
            for number, backend in part.backends.items()
        }

    def translated(self) -> set[int]:
        """The backends that the kernel forwards to: their connections are in conntrack."""
        return {
            number
            for part in self.parts
            if part.service.forwarding == "conntrack"
            for number in part.backends
        }

    def name(self, number: int) -> tuple[str, str]:
        """Names of the service and of the backend with this id."""
        for part in self.parts:
            if backend := part.backends.get(number):
                return part.service.name, backend.name or str(backend.address)
        return "", ""
