"""The kernel's programs beside the worker's machine code: the same bytes, or none changed."""

import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from building import service
from world import ALL, CLIENT, VIP, VIPS, World

from loaded_mp import bpf
from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING, NF_ACCEPT
from loaded_mp.fastpath.loader import object_file
from loaded_mp.fastpath.object import code_of
from loaded_mp.memory.arena import ADDRESS, why_no_arenas
from loaded_mp.memory.marks import LEAVES, LEAVING
from loaded_mp.memory.marks import VIP as VIP_MARK
from loaded_mp.memory.shared import KernelSetting, fresh_memory
from loaded_mp.memory.snapshot import Snapshot
from loaded_mp.packet.reasons import Reason

#: Of a million that the verifier follows.
MOST_VERIFIED = {"ingress": 250_000, "egress": 50_000, "redirect": 350_000}
ETHERNET = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}
COMPLETE = 1 << 2  #: BPF_F_TEST_SKB_CHECKSUM_COMPLETE
LOOPBACK = 1  #: the index of an interface that is always there
NEXT, SHOT = 0xFFFFFFFF, 2
PACKETS = 2_000
#: Of so many services of the same VIPs and backends: more rows than a verifier follows one by one.
PORTS = range(9_000, 9_060)
ALL_BACKENDS = dict.fromkeys(ALL, 1)


class Kernel:
    """A world whose memory both programs see."""

    def __init__(self) -> None:
        self.memory, self._descriptor = fresh_memory(65_536, 1, in_kernel=True)
        self.world = World(
            service("web", VIPS, ALL_BACKENDS),
            *(service(f"tcp-{port}", VIPS, ALL_BACKENDS, listen=[f"tcp/{port}"]) for port in PORTS),
            memory=self.memory,
        )
        for field in Snapshot._fields:
            getattr(self.memory.snapshots[0], field)[:] = getattr(self.world.snapshot, field)
        self.memory.kernel_settings[KernelSetting.LONGEST] = 65_535
        self.memory.kernel_settings[[KernelSetting.PUBLIC, KernelSetting.PRIVATE]] = LOOPBACK
        file = object_file()
        self.programs = {
            name: bpf.load_program(code_of(file, name, self._descriptor, ADDRESS), name)
            for name in MOST_VERIFIED
        }

    def run(
        self, program: str, packet: bytes, mark: int = 0, flags: int = 0, segment: int = 0
    ) -> tuple[int, int, bytes]:
        """Its answer, the mark and the packet after it; `segment`: bytes of those that it is made of."""
        frame = ETHERNET[4 if packet[0] >> 4 == 4 else 6] + packet
        segments = -(-len(packet) // segment) if segment else 0
        context = struct.pack("=8xI152xI8xI", mark, segments, segment)  # mark, gso_segs, gso_size
        done = bpf.try_out(self.programs[program], frame, context, flags=flags)
        return done.result, struct.unpack_from("=8xI", done.context)[0], done.frame[14:]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    if why_not := why_no_arenas():
        pytest.skip(why_not)
    return Kernel()


def packets(seed: int) -> Iterator[bytes]:
    """Requests of a few clients, valid, odd and broken."""
    chance = random.Random(seed)
    for _ in range(PACKETS):
        version = chance.choice((4, 6))
        source = (
            f"198.51.100.{chance.randrange(1, 6)}"
            if version == 4
            else f"2001:db8:c::{chance.randrange(1, 6)}"
        )
        network: Any = (
            IP(src=source, dst=VIP[4], ttl=chance.choice((1, 2, 64)))
            if version == 4
            else IPv6(src=source, dst=VIP[6], hlim=chance.choice((1, 2, 64)))
        )
        kind = chance.randrange(8)
        ports = {"sport": chance.choice((53, 1024, 40_000, 65_535)), "dport": chance.choice((53, 80))}
        upper: Any = TCP(
            **ports, seq=chance.randrange(1 << 32), flags=chance.choice(("A", "PA", "S", "FA", "R"))
        )
        if kind in (1, 2):
            upper = UDP(**ports, **({"chksum": 0} if kind == 2 and version == 4 else {}))
        elif kind == 3:
            upper = ICMP(id=7) if version == 4 else ICMPv6EchoRequest(id=7)
        elif kind == 4 and version == 4:
            network.flags = chance.choice(("MF", "DF"))
        elif kind == 5 and version == 4:
            network.frag = chance.choice((0, 3))
        data = bytes(network / upper / Raw(chance.randbytes(chance.randrange(60))))
        if chance.random() < 0.2:
            at = chance.randrange(len(data))
            data = data[:at] + chance.randbytes(1) + data[at + 1 :]
        if chance.random() < 0.05:
            data = data[: chance.randrange(20 if version == 4 else 40, len(data))]
        if data[0] >> 4 == version:
            yield data


def network_of(packet: bytes) -> Any:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)


def reply_to(packet: bytes) -> bytes | None:
    """What a backend says to a TCP or UDP packet."""
    version = packet[0] >> 4
    request = network_of(packet)
    network: Any = (IP if version == 4 else IPv6)(src=request.dst, dst=request.src)
    if TCP in request:
        return bytes(
            network / TCP(sport=request[TCP].dport, dport=request[TCP].sport, flags="PA") / Raw(b"odd")
        )
    if UDP in request:
        return bytes(network / UDP(sport=request[UDP].dport, dport=request[UDP].sport) / Raw(b"even"))
    return None


def test_no_load_extends_the_sign() -> None:
    """Linux 6.12 has no such loads from an arena: BPF_LDX | BPF_MEMSX (RFC 9669, 5.2)."""
    file = object_file()
    for name in MOST_VERIFIED:
        for code in code_of(file, name, 0, ADDRESS)[::8]:
            assert code & 0b111_00_111 != 0b100_00_001


def test_the_verifier_has_room(kernel: Kernel) -> None:
    verified = {name: bpf.program_info(program).verified for name, program in kernel.programs.items()}
    assert all(verified[name] < most for name, most in MOST_VERIFIED.items()), verified


@pytest.mark.parametrize("flags", [0, COMPLETE], ids=["plain", "complete-checksums"])
def test_requests_become_what_workers_make_of_them(kernel: Kernel, flags: int) -> None:
    changed = replies = 0
    for data in packets(1):
        decision, wanted = kernel.world.decide(data, HOOK_PREROUTING)  # so that there is a flow
        result, mark, found = kernel.run("ingress", data, flags=flags)
        assert result == NEXT
        if mark == 0:
            assert found == data
            continue
        assert (decision.reason, decision.verdict) == (Reason.OK, NF_ACCEPT)
        assert (found[: len(wanted)], mark) == (wanted, decision.mark), data.hex()
        changed += 1
        if (reply := reply_to(found)) is None:
            continue
        wanted = kernel.world.decide(reply, HOOK_POSTROUTING, mark=mark)[1]
        assert kernel.run("ingress", reply, flags=flags) == (NEXT, LEAVING, reply)
        leaves = LEAVES + mark - VIP_MARK
        assert kernel.run("egress", reply, leaves, flags=flags) == (NEXT, leaves, wanted), reply.hex()
        replies += 1
    assert min(changed, replies) > PACKETS / 5


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_may_be_that_of_many_services(kernel: Kernel, version: int) -> None:
    network: Any = IP if version == 4 else IPv6
    for port in (PORTS[0], PORTS[-1]):
        request = bytes(
            network(src=CLIENT[version], dst=VIP[version]) / TCP(sport=1024, dport=port, flags="A")
        )
        wanted = kernel.world.decide(request, HOOK_PREROUTING)[1]
        _, mark, found = kernel.run("ingress", request)
        assert found == wanted
        reply = reply_to(found)
        assert reply
        wanted = kernel.world.decide(reply, HOOK_POSTROUTING, mark=mark)[1]
        assert kernel.run("ingress", reply) == (NEXT, LEAVING, reply)
        assert kernel.run("egress", reply, LEAVES + mark - VIP_MARK)[2] == wanted


def test_what_is_not_known_stays_as_it_is(kernel: Kernel) -> None:
    stranger = bytes(IP(src="203.0.113.99", dst=VIP[4]) / TCP(sport=1024, dport=80, flags="A"))
    assert kernel.run("ingress", stranger) == (NEXT, 0, stranger)
    foreign = bytes(IP(src=CLIENT[4], dst="203.0.113.99") / TCP(sport=1024, dport=80, flags="A"))
    assert kernel.run("ingress", foreign) == (NEXT, 0, foreign)
    assert kernel.run("egress", foreign) == (NEXT, 0, foreign)


@pytest.mark.parametrize("version", [4, 6])
def test_segments_that_the_kernel_has_joined_are_changed_as_one(kernel: Kernel, version: int) -> None:
    network: Any = (IP if version == 4 else IPv6)(src=CLIENT[version], dst=VIP[version])
    request = bytes(network / TCP(sport=1024, dport=80, flags="A") / Raw(bytes(3_000)))
    decision, wanted = kernel.world.decide(request, HOOK_PREROUTING)
    assert kernel.run("ingress", request, segment=1_400) == (NEXT, decision.mark, wanted)
    reply = bytes(
        (IP if version == 4 else IPv6)(src=network_of(wanted).dst, dst=CLIENT[version])
        / TCP(sport=80, dport=1024, flags="A")
        / Raw(bytes(3_000))
    )
    wanted = kernel.world.decide(reply, HOOK_POSTROUTING, mark=decision.mark)[1]
    leaves = LEAVES + decision.mark - VIP_MARK
    assert kernel.run("ingress", reply, segment=1_400) == (NEXT, LEAVING, reply)
    assert kernel.run("egress", reply, leaves, segment=1_400) == (NEXT, leaves, wanted)


@pytest.mark.parametrize("gone", [0, 99_999])
def test_replies_stay_where_an_interface_is_not_seen(kernel: Kernel, gone: int) -> None:
    request = bytes(IP(src=CLIENT[4], dst=VIP[4]) / UDP(sport=1024, dport=80))
    kernel.world.decide(request, HOOK_PREROUTING)
    reply = reply_to(kernel.run("ingress", request)[2])
    assert reply
    assert kernel.run("ingress", reply)[1] == LEAVING
    kernel.memory.kernel_settings[KernelSetting.PRIVATE] = gone
    assert kernel.run("ingress", reply) == (NEXT, 0, reply)
    kernel.memory.kernel_settings[KernelSetting.PRIVATE] = LOOPBACK


def test_a_reply_of_nobody_does_not_leave_under_a_wrong_address(kernel: Kernel) -> None:
    reply = bytes(IP(src="203.0.113.99", dst=CLIENT[4]) / TCP(sport=80, dport=1024, flags="A"))
    assert kernel.run("egress", reply, LEAVES)[0] == SHOT


def test_a_counter_is_of_the_core_that_counted(kernel: Kernel) -> None:
    before = kernel.memory.kernel_counted.sum()
    kernel.run("ingress", bytes(IP(src=CLIENT[4], dst=VIP[4]) / UDP(sport=1024, dport=53)))
    assert kernel.memory.kernel_counted.sum() == before + np.uint64(1)
