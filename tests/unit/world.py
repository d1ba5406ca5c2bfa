"""One worker's world: what it reads, and what it does with packets."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from building import build, service
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPerror6, IPv6

from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.balance import decide
from loaded_mp.datapath.messages import (
    HOOK_POSTROUTING,
    HOOK_PREROUTING,
    NF_ACCEPT,
    NF_DROP,
    NF_REPEAT,
    Decision,
    Queued,
)
from loaded_mp.datapath.work import Work, work_of
from loaded_mp.flows.table import FlowTable
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK, TUNNEL
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.packet.reasons import Fate, Reason
from loaded_mp.packet.tunnel import ROOM
from loaded_mp.services import Ids
from loaded_mp.supervisor.affinities import Affinities
from loaded_mp.supervisor.state import Stops

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


Connection = tuple[str, frozenset[tuple[str, int]]]


def connection_of(data: bytes) -> Connection | None:
    """Both ends of what a packet, or the one that it quotes, belongs to; None if that cannot be told."""
    try:
        packet: Any = (IP if data[0] >> 4 == 4 else IPv6)(data)
        for quoted in (IPerror, IPerror6):
            if quoted in packet:
                packet = packet[quoted]
                return _ends(
                    packet, *(packet[each] for each in (TCPerror, UDPerror, ICMPerror) if each in packet)
                )
        echoes = (ICMP, ICMPv6EchoRequest, ICMPv6EchoReply)
        return _ends(packet, *(packet[each] for each in (TCP, UDP, *echoes) if each in packet))
    except (struct.error, IndexError):
        return None


def _ends(network: Any, *upper: Any) -> Connection:
    sport = dport = 0
    protocol = "other"
    if upper:
        echo = hasattr(upper[0], "id")
        sport, dport = (upper[0].id, upper[0].id) if echo else (upper[0].sport, upper[0].dport)
        protocol = "echo" if echo else type(upper[0]).__name__.removesuffix("error")
    return protocol, frozenset({(network.src, sport), (network.dst, dport)})


class World:
    """Snapshot, flow table and counters of one worker."""

    def __init__(self, *services: Service, flows: int = 65_536, memory: SharedMemory | None = None) -> None:
        self.ids = Ids()
        self.affinities = Affinities()
        self.memory = memory or new_shared_memory(flows, 1)
        self.memory.table.secret[:] = 1, 2
        self.now_s = 1000
        self.marks: dict[Connection, int] = {}  #: as conntrack keeps them
        self.publish(*services)

    def publish(
        self, *services: Service, down: tuple[str, ...] = (), stops: Mapping[str, Stops] = {}
    ) -> None:
        expanded = self.ids.expand(Config(services=services))
        self.backends = {
            (part.service.name, str(backend.address)): number
            for part in expanded.parts
            for number, backend in part.backends.items()
        }
        numbers = tuple(number for (_, address), number in self.backends.items() if address in down)
        stopping = {n: stops[address] for (_, address), n in self.backends.items() if address in stops}
        self.snapshot, self.parts = build(
            *services, ids=self.ids, down=numbers, stops=stopping, affinities=self.affinities
        )

    @property
    def work(self) -> Work:
        # Compiled code cannot hand a part of an array to Python.
        work: Work = getattr(work_of, "py_func", work_of)(self.memory, 0, self.now_s)
        return work._replace(snapshot=self.snapshot)

    @property
    def table(self) -> FlowTable:
        return self.memory.table

    def decide(
        self,
        data: bytes,
        hook: int,
        cut: bool = False,
        ready: bool = True,
        mark: int = 0,
        several: bool = False,
    ) -> tuple[Decision, bytes]:
        """The decision on a packet at a hook, and what it is then. Only what was changed may differ."""
        buffer = np.full(START + len(data) + ROOM + 8, CANARY, np.uint8)
        buffer[START : START + len(data)] = np.frombuffer(data, np.uint8)
        queued = Queued(1, hook, START, START + len(data), cut, ready, mark, several)
        decision = Decision(*decide(buffer, queued, self.work))
        assert (buffer[:START] == CANARY).all()
        assert (buffer[-8:] == CANARY).all()
        result = buffer[START : decision.end if decision.changed else START + len(data)].tobytes()
        if decision.reason not in (Reason.OK, Reason.TOLD, Reason.CUT, Reason.CHECKSUM_UNFINISHED):
            assert result == data
        if decision.reason != Reason.OK:
            assert decision.changed == (decision.reason == Reason.TOLD)
        elif decision.mark == TUNNEL:
            assert (decision.verdict, decision.changed) == (NF_REPEAT, True)
        elif decision.mark & BACKEND_MASK != BACKEND:
            assert (decision.verdict, decision.changed) == (NF_ACCEPT, True)
        else:
            assert decision.verdict == NF_REPEAT
            assert decision.changed or result == data
        return decision, result

    def request(self, packet: Any, mark: int = 0) -> tuple[Reason, bytes]:
        """What becomes of a packet for a VIP."""
        decision, result = self.decide(bytes(packet), HOOK_PREROUTING, mark=mark)
        reason = REASONS[decision.reason]
        if reason != Reason.OK:
            assert decision.verdict == (
                NF_ACCEPT if reason.from_client in (Fate.PASS, Fate.REJECT) else NF_DROP
            )
        elif decision.mark and (connection := connection_of(result)):
            self.marks[connection] = decision.mark
        return reason, result

    def reply(self, packet: Any, forgotten: bool = False) -> tuple[Reason, bytes]:
        """What becomes of a packet from the backends' side; `forgotten`: conntrack does not know it."""
        data = bytes(packet)
        connection = connection_of(data)
        mark = self.marks.get(connection, 0) if connection and not forgotten else 0
        decision, result = self.decide(data, HOOK_POSTROUTING, mark=mark)
        return REASONS[decision.reason], result

    def backend_of(self, packet: Any) -> str:
        """The address of the backend that a packet for a VIP goes to."""
        reason, result = self.request(packet)
        assert reason == Reason.OK
        return str((IP if result[0] >> 4 == 4 else IPv6)(result).dst)

    def flows(self) -> int:
        return int(np.count_nonzero(self.table.words >> np.uint64(24)))


def client(version: int, network: int, host: int) -> str:
    """The address of a client in one of several networks (/24, /64)."""
    return f"198.51.{network}.{host}" if version == 4 else f"2001:db8:0:{network}::{host}"


def web(**more: Any) -> Service:
    """Everything of both VIPs, to three backends of each family."""
    return service("web", VIPS, dict.fromkeys(ALL, 1), **more)
