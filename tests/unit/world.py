"""One worker's world: what it reads, and what it does with packets."""

from typing import Any

import numpy as np
from building import build, service
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.balance import decide
from loaded_mp.datapath.messages import HOOK_PREROUTING, NF_ACCEPT, NF_DROP, Decision, Queued
from loaded_mp.datapath.work import Work, work_of
from loaded_mp.flows.table import FlowTable
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.packet.reasons import Fate, Reason
from loaded_mp.services import Ids

VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
VIP2 = {4: "192.0.2.20", 6: "2001:db8::20"}
CLIENT = {4: "198.51.100.7", 6: "2001:db8:c::7"}
ROUTER = {4: "10.9.9.9", 6: "fd00:9::9"}
BACKENDS = {4: ["10.0.0.1", "10.0.0.2", "10.0.0.3"], 6: ["fd00::1", "fd00::2", "fd00::3"]}
ALL = [*BACKENDS[4], *BACKENDS[6]]
VIPS = [VIP[4], VIP[6]]
START = 8
CANARY = 0xA5
#: Compiled code hands an enumeration's members to Python as numbers.
REASONS = list(Reason)
HOOK_POSTROUTING = 4  # include/uapi/linux/netfilter.h


class World:
    """Snapshot, flow table and counters of one worker."""

    def __init__(self, *services: Service, flows: int = 65_536) -> None:
        self.ids = Ids()
        self.memory = new_shared_memory(flows, 1)
        self.memory.table.secret[:] = 1, 2
        self.now_s = 1000
        self.publish(*services)

    def publish(self, *services: Service, down: tuple[str, ...] = ()) -> None:
        expanded = self.ids.expand(Config(services=services))
        self.backends = {
            (part.service.name, str(backend.address)): number
            for part in expanded.parts
            for number, backend in part.backends.items()
        }
        numbers = tuple(number for (_, address), number in self.backends.items() if address in down)
        self.snapshot, self.parts = build(*services, ids=self.ids, down=numbers)

    @property
    def work(self) -> Work:
        # Compiled code cannot hand a part of an array to Python.
        work: Work = getattr(work_of, "py_func", work_of)(self.memory, 0, self.now_s)
        return work._replace(snapshot=self.snapshot)

    @property
    def table(self) -> FlowTable:
        return self.memory.table

    def decide(self, data: bytes, hook: int, cut: bool = False, ready: bool = True) -> tuple[Decision, bytes]:
        """The decision on a packet at a hook, and what it is then. Only what was changed may differ."""
        buffer = np.full(START + len(data) + 8, CANARY, np.uint8)
        buffer[START : START + len(data)] = np.frombuffer(data, np.uint8)
        queued = Queued(1, hook, START, START + len(data), cut, ready)
        decision = Decision(*decide(buffer, queued, self.work))
        assert (buffer[:START] == CANARY).all()
        assert (buffer[-8:] == CANARY).all()
        result = buffer[START:-8].tobytes()
        if decision.reason not in (Reason.OK, Reason.CUT, Reason.CHECKSUM_UNFINISHED):
            assert result == data
        if decision.reason == Reason.OK and not decision.mark:
            assert (decision.verdict, decision.changed) == (NF_ACCEPT, True)
        else:
            assert not decision.changed
        return decision, result

    def _decided(self, data: bytes, hook: int) -> tuple[Reason, bytes]:
        decision, result = self.decide(data, hook)
        fate = REASONS[decision.reason].from_client if hook == HOOK_PREROUTING else None
        if fate is not None and decision.reason != Reason.OK:
            assert decision.verdict == (NF_ACCEPT if fate == Fate.PASS else NF_DROP)
        return REASONS[decision.reason], result

    def request(self, packet: Any) -> tuple[Reason, bytes]:
        """What becomes of a packet for a VIP."""
        return self._decided(bytes(packet), HOOK_PREROUTING)

    def reply(self, packet: Any) -> tuple[Reason, bytes]:
        """What becomes of a packet from the backends' side."""
        return self._decided(bytes(packet), HOOK_POSTROUTING)

    def backend_of(self, packet: Any) -> str:
        """The address of the backend that a packet for a VIP goes to."""
        reason, result = self.request(packet)
        assert reason == Reason.OK
        return str((IP if result[0] >> 4 == 4 else IPv6)(result).dst)

    def flows(self) -> int:
        return int(np.count_nonzero(self.table.words >> np.uint64(24)))


def web(**more: Any) -> Service:
    """Everything of both VIPs, to three backends of each family."""
    return service("web", VIPS, dict.fromkeys(ALL, 1), **more)
