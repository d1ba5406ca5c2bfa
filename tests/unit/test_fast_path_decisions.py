"""What the kernel's program decides of a packet, as Python: the kernel alone has it compiled."""

from typing import Any

import numba
import numpy as np
import pytest
from building import service
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from world import BACKENDS, CLIENT, VIP, VIPS, World

from loaded_mp.datapath.messages import HOOK_PREROUTING
from loaded_mp.fastpath.decide import decide, plain
from loaded_mp.memory.counters import FastPathCounter

pytestmark = pytest.mark.skipif(not numba.config.DISABLE_JIT, reason="only as Python")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("other", [9000, 443], ids=["another port", "another protocol"])
def test_a_reply_renews_the_flow_of_its_own_service_alone(version: int, other: int) -> None:
    layer: Any = IP if version == 4 else IPv6
    backend = {BACKENDS[version][0]: 1}
    world = World(
        service("web", VIPS, backend, listen=["tcp/80", "tcp/443", "icmp"]),
        service("dns", VIPS, backend, listen=[f"udp/{other}"]),
    )
    for upper in (UDP(sport=1024, dport=other), TCP(sport=1024, dport=443, flags="S")):
        request = bytes(layer(src=CLIENT[version], dst=VIP[version]) / upper)
        world.decide(request, HOOK_PREROUTING)
    old_s = world.table.deadlines_s.max()
    world.now_s += 5
    answer = TCP(sport=443, dport=1024, flags="A")
    reply = np.frombuffer(
        bytes(layer(src=BACKENDS[version][0], dst=CLIENT[version]) / answer).ljust(60, b"\0"), np.uint8
    )
    found = decide(reply, plain(reply, reply.size), 65_535, world.work)
    assert (found.way, found.backend) == (
        FastPathCounter.TO_CLIENT,
        world.backends["web", BACKENDS[version][0]],
    )
    deadlines_s = world.table.deadlines_s[world.table.deadlines_s > 0]
    assert (deadlines_s > old_s).sum() == 1
    assert deadlines_s.size == 2
