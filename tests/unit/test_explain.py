"""What is said of a packet is what then becomes of it, and saying it changes nothing."""

import random
from collections import Counter
from ipaddress import ip_address
from typing import Literal

import numpy as np
import pytest
from building import many, service
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from world import ALL, BACKENDS, CLIENT, REASONS, VIP, VIP2, VIPS, World

from loaded_mp.cli.explain import lines
from loaded_mp.config.model import Config, Service
from loaded_mp.control.commands import CommandError
from loaded_mp.datapath.messages import HOOK_PREROUTING
from loaded_mp.fields import Listener, Protocol
from loaded_mp.memory.marks import BACKEND, BACKEND_MASK
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import Explanation, Wanted
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.explain import explain
from loaded_mp.supervisor.state import BackendState

PACKETS = many(10_000)
PORTS = [53, 80, 443, 8_080, 8_081, 9_000]
PROTOCOLS: list[Protocol] = ["tcp", "udp", "icmp"]
NOWHERE = {4: "192.0.2.99", 6: "2001:db8::99"}

_PACKETS = {
    (version, protocol): bytes(network / upper)
    for version, network, echo in (
        (4, IP(src=CLIENT[4], dst=VIP[4]), ICMP()),
        (6, IPv6(src=CLIENT[6], dst=VIP[6]), ICMPv6EchoRequest()),
    )
    for protocol, upper in (("tcp", TCP(flags="S")), ("udp", UDP()), ("icmp", echo))
}


def packet(
    source: str, vip: str, protocol: Protocol, port: int | None, source_port: int | None = None
) -> bytes:
    """What a client sends first."""
    first, length, header = (12, 4, 20) if ":" not in vip else (8, 16, 40)
    data = bytearray(_PACKETS[4 if length == 4 else 6, protocol])
    data[first : first + length] = ip_address(source).packed
    data[first + length : first + 2 * length] = ip_address(vip).packed
    if port is not None:
        data[header + 2 : header + 4] = port.to_bytes(2)
    if source_port is not None:
        data[header : header + 2] = source_port.to_bytes(2)
    return bytes(data)


class Daemon(World):
    """A world whose snapshot is the one that a supervisor's backends make."""

    def __init__(self, *services: Service) -> None:
        super().__init__(*services, flows=4_096)
        self.supervised = Backends(self.memory, Config(services=services))
        self.show()

    def show(self) -> None:
        """Let workers read what backends are."""
        self.snapshot = self.memory.snapshots[0]
        self.supervised.fill(self.snapshot)

    def explain(
        self, source: str, vip: str, protocol: Protocol = "tcp", port: int | None = 80
    ) -> Explanation:
        ends = ip_address(source), ip_address(vip)
        return explain(self.memory, self.supervised, ends, Listener(protocol=protocol), port)

    def happens(
        self,
        source: str,
        vip: str,
        protocol: Protocol = "tcp",
        port: int | None = 80,
        source_port: int | None = None,
    ) -> Reason | str:
        """The address of the backend that a packet goes to, or why it goes to none."""
        data = packet(source, vip, protocol, port, source_port)
        decision, result = self.decide(data, HOOK_PREROUTING)
        if decision.reason != Reason.OK:
            return REASONS[decision.reason]
        if decision.mark & BACKEND_MASK == BACKEND:
            number = decision.mark - BACKEND
            return str(self.supervised.services.part_of[number].backends[number].address)
        return str(ip_address(result[16:20] if result[0] >> 4 == 4 else result[24:40]))

    def state(self, address: str) -> BackendState:
        for number, part in self.supervised.services.part_of.items():
            if str(part.backends[number].address) == address:
                return self.supervised.states[number]
        raise KeyError(address)

    def bytes(self) -> list[bytes]:
        """Everything that packets change."""
        memory = self.memory
        return [
            each.tobytes()
            for each in (memory.table.words, memory.table.deadlines_s, memory.table.keys, memory.cursors)
        ] + [memory.backends.tobytes(), memory.active.tobytes(), memory.flow_table.tobytes()]


SERVICES = (
    service("web", VIPS, dict.fromkeys(ALL, 2), listen=["tcp/80", "tcp/8000-8099"], all_down="reject"),
    service("dns", VIPS, dict.fromkeys(ALL, 1), listen=["udp/53", "tcp/53"], scheduler="rr", on_down="keep"),
    service("tls", VIPS, dict.fromkeys(ALL, 1), listen=["tcp/443"], forwarding="conntrack"),
    service("quic", VIPS, dict.fromkeys(ALL, 1), listen=["udp/443"], affinity="none"),
    service("ping", VIPS, dict.fromkeys(ALL, 1), listen=["icmp"], panic_share=0.5, on_down="reset"),
    service("rest", [VIP2[4], VIP2[6]], dict.fromkeys(ALL, 3), on_down="reset", all_down="spread"),
    service(
        "one",
        [VIP2[4], VIP2[6]],
        dict.fromkeys(ALL, 1),
        listen=["tcp/8080"],
        slow_start_s=100,
        affinity="source/28/124",
    ),
)


def with_backups(one: Service) -> Service:
    """The last backend of each family is a backup."""
    last = {BACKENDS[4][-1], BACKENDS[6][-1]}
    backends = tuple(each.model_copy(update={"backup": str(each.address) in last}) for each in one.backends)
    return one.model_copy(update={"backends": backends})


def change_something(world: Daemon, chance: random.Random) -> None:
    """As checks and the operator do."""
    for state in world.supervised.states.values():
        state.up = chance.random() < 0.7
        state.cause = "" if state.up else "refused"
        state.slow = chance.random() < 0.5
        state.wanted = chance.choices(list(Wanted), (8, 1, 1))[0]
        state.weight = chance.choice([None, None, None, 0, 5])
    world.show()


def test_what_is_said_of_random_packets_is_what_happens() -> None:
    chance = random.Random(5)
    world = Daemon(*(with_backups(each) for each in SERVICES[:3]), *SERVICES[3:])
    seen: Counter[str] = Counter()
    for number in range(PACKETS):
        if number % (PACKETS // 50) == 0:
            change_something(world, chance)
        version: Literal[4, 6] = chance.choice((4, 6))
        client = chance.randrange(1, 200)
        source = f"198.51.100.{client}" if version == 4 else f"2001:db8:c::{client:x}"
        vip = chance.choices([VIP[version], VIP2[version], NOWHERE[version]], (5, 5, 1))[0]
        protocol = chance.choice(PROTOCOLS)
        port = None if protocol == "icmp" else chance.choice(PORTS)
        before = world.bytes() if number % 100 == 0 else None
        said = world.explain(source, vip, protocol, port)
        assert before is None or before == world.bytes()
        happened = world.happens(source, vip, protocol, port)
        if not said.service:
            assert happened == Reason.NO_SERVICE
        elif said.backend:
            assert happened == said.address, said
        else:
            assert happened == (Reason.REJECTED if said.why.endswith("rejected") else Reason.NO_BACKEND)
        kept = bool(said.flow) and said.flow == said.backend
        assert kept == said.why.startswith("its flow stays"), said
        seen[said.why.partition(":")[0]] += 1
    assert len(seen) >= 6, seen  # every kind of answer came


def test_who_is_left_out_is_told_with_the_reason() -> None:
    world = Daemon(with_backups(SERVICES[0]))
    first, second, third = BACKENDS[4]
    world.state(first).wanted = Wanted.DRAIN
    world.state(second).up = False
    world.state(second).cause = "connect to 10.0.0.2:80: refused"
    world.show()
    said = world.explain(CLIENT[4], VIP[4])
    assert {each.address: each.left_out for each in said.candidates} == {
        first: "drain",
        second: "down: connect to 10.0.0.2:80: refused",
        third: "",
    }
    assert (said.service, said.listener, said.address, said.why) == ("web", "tcp/80", third, "next in turn")
    world.state(first).wanted = Wanted.READY
    world.show()
    said = world.explain(CLIENT[4], VIP[4])
    assert said.candidates[2].left_out == "backup, and others serve"
    world.happens(CLIENT[4], VIP[4])
    assert world.explain(CLIENT[4], VIP[4]).why == "its flow stays there"
    assert world.explain(CLIENT[4], VIP[4], "udp").why.startswith("no service answers this protocol and port")
    assert world.explain(CLIENT[4], NOWHERE[4]).why.startswith(f"{NOWHERE[4]} is no VIP")
    with pytest.raises(CommandError, match="two families"):
        world.explain(CLIENT[4], VIP[6])


def test_an_explanation_fits_a_screen() -> None:
    world = Daemon(with_backups(SERVICES[0]))
    world.state(BACKENDS[6][0]).up = False
    world.show()
    for version in (4, 6):
        for vip in (VIP[version], NOWHERE[version]):
            said = lines(world.explain(CLIENT[version], vip))
            assert max(map(len, said)) <= 80
    assert np.count_nonzero(world.memory.table.words) == 0
