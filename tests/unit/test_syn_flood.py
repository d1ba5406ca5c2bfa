"""Ten million packets from spoofed sources, as fast as a worker decides them."""

import numba
import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from world import START, VIP, World, web

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.config.model import Config
from loaded_mp.datapath.balance import decide
from loaded_mp.datapath.messages import HOOK_PREROUTING, Queued
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import FlowTableCounter
from loaded_mp.packet.reasons import Reason

#: 10^6 a second for as long as an unanswered flow is kept, and no sweep meanwhile: the worst that can be.
SECONDS, EACH_SECOND = 10, 1_000_000
CLIENTS = 2_000


@compiled
def flood(packet: Bytes, spoofed: Bytes, work: Work, seed: int) -> int:
    """Decide EACH_SECOND packets like `packet` from sources of their own; how many were balanced."""
    balanced = 0
    queued = Queued(1, HOOK_PREROUTING, START, START + packet.size, False, True, 0, False)
    for i in range(EACH_SECOND):
        for at in range(packet.size):
            spoofed[START + at] = packet[at]
        # Knuth's multiplicative hash: a step through all 2^32 sources that meets none twice.
        source = (seed * EACH_SECOND + i) * 2_654_435_761
        for byte in range(4):
            spoofed[START + 12 + byte] = np.uint8(source >> 8 * byte & 0xFF)
        balanced += decide(spoofed, queued, work).reason == Reason.OK
    return balanced


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="interpreted, it takes an hour")
def test_a_flood_of_spoofed_sources_moves_nobody_who_is_served() -> None:
    world = World(web(), flows=Config.model_fields["flows"].default)
    clients = [f"172.{16 + n // 65_536}.{n // 256 % 256}.{n % 256}" for n in range(CLIENTS)]
    homes = {}
    for client in clients:
        request = IP(src=client, dst=VIP[4]) / TCP(sport=1_000, dport=80, flags="S")
        homes[client] = world.backend_of(request)
        reply = IP(src=homes[client], dst=client) / TCP(sport=80, dport=1_000, flags="SA")
        assert world.reply(reply)[0] == Reason.OK
        assert (
            world.backend_of(IP(src=client, dst=VIP[4]) / TCP(sport=1_000, dport=80, flags="A"))
            == homes[client]
        )
    syn = np.frombuffer(bytes(IP(dst=VIP[4]) / TCP(sport=1, dport=80, flags="S")), np.uint8)
    spoofed = np.zeros(START + syn.size, np.uint8)
    for second in range(SECONDS):
        world.now_s += 1
        assert flood(syn, spoofed, world.work, second) == EACH_SECOND
    assert int(world.memory.flow_table[0, FlowTableCounter.EVICTIONS]) > SECONDS * EACH_SECOND // 2
    after = {
        client: world.backend_of(IP(src=client, dst=VIP[4]) / TCP(sport=1_000, dport=80, flags="A"))
        for client in clients
    }
    assert after == homes
