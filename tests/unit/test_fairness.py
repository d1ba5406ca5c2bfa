"""Who gets how much of a worker while packets wait."""

import socket
from collections import Counter
from itertools import chain, repeat

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from world import BACKENDS, VIP, World, web
from world import CLIENT as CLIENTS

from loaded_mp.datapath.fairness import (
    _ALONE_US,
    CROWDED_US,
    LASTING_US,
    STRANGERS,
    Shares,
    crowded,
    learn_pace,
    new_shares,
    over_share,
    source_of,
)
from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING, Queued
from loaded_mp.datapath.system import waiting_bytes
from loaded_mp.packet.address import Address128, ip_of

BATCH = 64
FLOOD, CLIENT = 7, 8
#: Of one packet of 100 bytes: 4 us.
PACKET_BYTES, PACKET_US = 100, 4
MESSAGE_BYTES = 800


@pytest.fixture
def shares() -> Shares:
    shares = new_shares(BATCH)
    for _ in range(50):
        learn_pace(shares, BATCH, BATCH * PACKET_BYTES, BATCH * PACKET_US)
    return shares


def kept(shares: Shares, sources: list[int], now_us: int = 0) -> Counter[int]:
    """How many packets of each source are left of a batch."""
    over = [
        over_share(shares, i, Address128(np.uint64(0), np.uint64(source)), now_us)
        for i, source in enumerate(sources)
    ]
    return Counter(source for source, dropped in zip(sources, over, strict=True) if not dropped)


LONG_WAIT = MESSAGE_BYTES * 4 * CROWDED_US // PACKET_US
LATER_US = LASTING_US + 2


def long_wait(shares: Shares, batches: int) -> None:
    crowded(shares, LONG_WAIT, 1)
    shares.allowed[0] = BATCH
    for _ in range(batches):
        assert crowded(shares, LONG_WAIT, LATER_US)


def test_what_is_worked_off_soon_is_not_too_much(shares: Shares) -> None:
    for now_us in range(1, LASTING_US, LASTING_US // 10):
        assert not crowded(shares, LONG_WAIT, now_us)
    assert crowded(shares, LONG_WAIT, LATER_US)
    assert not crowded(shares, 0, LATER_US)
    assert crowded(shares, LONG_WAIT, LATER_US + _ALONE_US), "the same crowd"
    assert not crowded(shares, LONG_WAIT, LATER_US + 2 * _ALONE_US + 1), "another one"


def test_what_a_worker_works_off_in_time_is_not_too_much(shares: Shares) -> None:
    moment = MESSAGE_BYTES * CROWDED_US // PACKET_US
    assert not crowded(shares, moment * 11 // 10, 1)
    assert not crowded(shares, moment * 9 // 10, LATER_US)
    assert crowded(shares, moment * 11 // 10, 2 * LATER_US)


def test_a_batch_that_was_held_up_does_not_make_it_too_much(shares: Shares) -> None:
    learn_pace(shares, BATCH, BATCH * PACKET_BYTES, 4 * BATCH * PACKET_US)
    crowded(shares, LONG_WAIT, 1)
    assert not crowded(shares, MESSAGE_BYTES * CROWDED_US // PACKET_US // 2, LATER_US)


def test_before_the_first_full_batch_nothing_is_too_much() -> None:
    assert not crowded(new_shares(BATCH), 1 << 30, LATER_US)


def test_those_who_send_more_than_the_others_are_cut_and_nobody_else(shares: Shares) -> None:
    long_wait(shares, 12)
    allowed = int(shares.allowed[0])
    assert 8 < allowed < 32
    batch = [*chain.from_iterable(zip(repeat(FLOOD, 16), repeat(FLOOD + 90, 16), strict=True))]
    batch += [FLOOD] * 24 + list(range(100, 108))
    assert kept(shares, batch) == {FLOOD: allowed, FLOOD + 90: min(16, allowed)} | dict.fromkeys(
        range(100, 108), 1
    )


def test_one_packet_of_a_source_is_always_left(shares: Shares) -> None:
    long_wait(shares, 1_000)
    assert kept(shares, [FLOOD] * 63 + [CLIENT]) == {FLOOD: 1 + 62, CLIENT: 1}, "until another is seen"
    assert kept(shares, [FLOOD] * 63 + [CLIENT]) == {FLOOD: 1, CLIENT: 1}


def test_a_source_that_is_alone_loses_nothing(shares: Shares) -> None:
    long_wait(shares, 1_000)
    assert kept(shares, [FLOOD] * BATCH) == {FLOOD: BATCH}
    kept(shares, [CLIENT] + [FLOOD] * 63, now_us=5)
    assert kept(shares, [FLOOD] * BATCH, now_us=_ALONE_US)[FLOOD] == 1, "another was there a second ago"
    assert kept(shares, [FLOOD] * BATCH, now_us=5 + _ALONE_US) == {FLOOD: BATCH}


def test_when_it_is_over_all_is_as_before(shares: Shares) -> None:
    long_wait(shares, 1_000)
    for _ in range(BATCH):
        assert not crowded(shares, 0, LATER_US)
    assert int(shares.allowed[0]) == BATCH


def test_what_has_no_source_is_left_alone(shares: Shares) -> None:
    long_wait(shares, 1_000)
    assert kept(shares, [0, CLIENT] * 32)[0] == 32


def source(world: World, packet: bytes, hook: int = HOOK_PREROUTING) -> str:
    buffer = np.frombuffer(b"\xa5" * 8 + packet, np.uint8).copy()
    queued = Queued(1, hook, 8, 8 + len(packet), False, True, 0, False)
    return str(ip_of(Address128(*source_of(buffer, queued, world.work))))


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_is_the_client_in_both_directions(version: int) -> None:
    world = World(web())
    layer, client = {4: IP, 6: IPv6}[version], CLIENTS[version]
    request = layer(src=client, dst=VIP[version]) / UDP(sport=1, dport=2)
    world.backend_of(request)
    assert source(world, bytes(request)) == client
    reply = layer(src=BACKENDS[version][0], dst=client) / UDP(sport=2, dport=1)
    assert source(world, bytes(reply), HOOK_POSTROUTING) == client


def test_clients_without_a_flow_are_one_source() -> None:
    world = World(web(listen=["udp/2"]))
    strangers = {
        source(world, bytes(IP(src=f"100.64.0.{n}", dst=VIP[4]) / UDP(sport=1, dport=2))) for n in range(9)
    }
    assert strangers == {str(ip_of(STRANGERS))}
    for other in (
        IP(src=CLIENTS[4], dst=VIP[4]) / UDP(sport=1, dport=3),
        IP(src=CLIENTS[4], dst="192.0.2.99") / UDP(sport=1, dport=2),
        IP(src=CLIENTS[4], dst=VIP[4], proto=17) / b"short",
    ):
        assert source(world, bytes(other)) == CLIENTS[4], "nobody's, or broken: its own"


@pytest.mark.parametrize("packet", [b"", b"\x45" + bytes(18), b"\x60" + bytes(38), b"\x00" * 60])
def test_what_cannot_be_read_has_no_source(packet: bytes) -> None:
    assert source(World(web()), packet) == "::"


def test_the_kernel_tells_how_much_waits_in_a_socket() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        scratch = np.zeros(6, np.int64)
        assert waiting_bytes(receiver.fileno(), scratch) == 0
        for _ in range(3):
            sender.sendto(bytes(1_000), receiver.getsockname())
        assert 3_000 <= waiting_bytes(receiver.fileno(), scratch) < 20_000
    with open("/dev/null") as no_socket:
        assert waiting_bytes(no_socket.fileno(), scratch) == 0
