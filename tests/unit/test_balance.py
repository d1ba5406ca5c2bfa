"""One packet's decision, with scapy as the judge of every byte that comes out."""

from ipaddress import ip_address
from typing import Any

import numba
import numpy as np
import pytest
from building import many, service, unsigned
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw
from world import (
    ALL,
    BACKENDS,
    CLIENT,
    ROUTER,
    START,
    VIP,
    VIP2,
    VIPS,
    World,
    connection_of,
    web,
)

from loaded_mp.config.model import Service
from loaded_mp.datapath import home
from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING, NF_ACCEPT, NF_DROP, NF_REPEAT
from loaded_mp.flows.flow import flow_of
from loaded_mp.flows.table import MAX_VALUE, expire, find, insert, value_of
from loaded_mp.memory.counters import BackendCounter, FlowTableCounter
from loaded_mp.memory.marks import BACKEND, MISPLACED, REJECTED
from loaded_mp.memory.snapshot import Flag
from loaded_mp.packet.address import address128
from loaded_mp.packet.header import MAX_EXTENSIONS
from loaded_mp.packet.reasons import Fate, Reason
from loaded_mp.supervisor.state import Stops

both = pytest.mark.parametrize("version", [4, 6])


def ip(version: int, source: str, destination: str, **more: Any) -> Any:
    return (IP if version == 4 else IPv6)(src=source, dst=destination, **more)


def echo(version: int, identifier: int, reply: bool = False, data: bytes = b"abc") -> Any:
    if version == 4:
        return ICMP(type=0 if reply else 8, id=identifier, seq=1) / data
    return (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=identifier, seq=1, data=data)


def with_addresses(packet: Any, source: str | None = None, destination: str | None = None) -> bytes:
    """The same packet built anew with other addresses, and so with all checksums computed anew."""
    packet = packet.copy()
    packet.src, packet.dst = source or packet.src, destination or packet.dst
    return bytes(packet)


numbers = st.integers(1, 65_535)
payloads = st.binary(max_size=300)


@st.composite
def exchanges(draw: st.DrawFn, version: int) -> tuple[Any, Any]:
    """The upper layers of a request and of its reply."""
    one, other, data = draw(numbers), draw(numbers), draw(payloads)
    kind = draw(st.sampled_from(["tcp", "udp", "echo", "other"]))
    if kind == "tcp":
        return (
            TCP(sport=one, dport=other, flags="S") / data,
            TCP(sport=other, dport=one, flags="SA") / data,
        )
    if kind == "udp":
        return UDP(sport=one, dport=other) / data, UDP(sport=other, dport=one) / data
    if kind == "echo":
        return echo(version, one, data=data), echo(version, one, reply=True, data=data)
    return Raw(b"\1\2\3\4" + data), Raw(b"\4\3\2\1" + data)


def gre(version: int, packet: Any) -> Any:
    """Names the protocol of what has no layer of scapy's: GRE."""
    if isinstance(packet.payload, Raw):
        packet.fields["proto" if version == 4 else "nh"] = 47
    return packet


@both
@settings(deadline=None, max_examples=60)
@given(data=st.data(), shared=st.booleans())
def test_there_and_back(version: int, data: st.DataObject, shared: bool) -> None:
    services = [web()]
    if shared:
        services.append(service("mail", [VIP2[4], VIP2[6]], dict.fromkeys(ALL, 1)))
    world = World(*services)
    asked, answered = data.draw(exchanges(version))
    request = gre(version, ip(version, CLIENT[version], VIP[version]) / asked)
    backend = world.backend_of(request)
    assert backend in BACKENDS[version]
    assert world.request(request)[1] == with_addresses(request, destination=backend)
    reply = gre(version, ip(version, backend, CLIENT[version]) / answered)
    assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=VIP[version]))
    other = next(each for each in BACKENDS[version] if each != backend)
    stray = gre(version, ip(version, other, CLIENT[version]) / answered)
    assert world.reply(stray)[0] == Reason.NO_FLOW


@both
def test_a_source_stays_with_its_backend(version: int) -> None:
    world = World(web())
    for client in range(1, 30):
        source = CLIENT[version][:-1] + str(client)
        packets = [
            ip(version, source, VIP[version]) / layer
            for layer in (
                TCP(sport=1000, dport=80),
                TCP(sport=2000, dport=443),
                UDP(sport=1000, dport=53),
                echo(version, 77),
            )
        ]
        assert len({world.backend_of(packet) for packet in packets * 5}) == 1
    assert world.flows() == 29


@both
def test_new_sources_split_exactly_by_weight(version: int) -> None:
    sources = many(10_000)
    weights = dict(zip(BACKENDS[version], (5, 3, 2), strict=True))
    world = World(service("web", [VIP[version]], weights))
    data = bytes(ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2))
    at, end = (12, 16) if version == 4 else (8, 24)
    for i in range(sources):
        source = (int.from_bytes(data[at:end]) + (i << 40 if version == 6 else i)).to_bytes(end - at)
        assert world.request(data[:at] + source + data[end:])[0] == Reason.OK
    new_flows = [
        int(world.memory.backends[0, world.backends["web", each], BackendCounter.NEW_FLOWS])
        for each in BACKENDS[version]
    ]
    assert new_flows == [sources * weight // 10 for weight in (5, 3, 2)]


@both
def test_traffic_is_counted_by_backend(version: int) -> None:
    world = World(web())
    request = ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2) / b"question"
    backend = world.backend_of(request)
    reply = ip(version, backend, CLIENT[version]) / UDP(sport=2, dport=1) / b"a longer answer"
    world.reply(reply)
    world.reply(reply)
    row = world.memory.backends[0, world.backends["web", backend], : len(BackendCounter)].tolist()
    assert row == [1, len(bytes(request)), 2, 2 * len(bytes(reply)), 1, 0, 0, 0, 0, 2]
    assert int(world.memory.backends.sum()) == sum(row)


@both
def test_what_tells_of_a_backends_state_is_counted(version: int) -> None:
    world = World(web())
    client, vip = CLIENT[version], VIP[version]
    syn = ip(version, client, vip) / TCP(sport=1, dport=80, flags="S", seq=7)
    backend = world.backend_of(syn)
    world.backend_of(ip(version, client, vip) / TCP(sport=1, dport=80, flags="A"))
    back = ip(version, backend, client)
    world.reply(back / TCP(sport=80, dport=1, flags="RA", seq=0, ack=8))
    world.reply(back / TCP(sport=80, dport=1, flags="RA", seq=9, ack=8))
    quote = quote_of(version, client, backend, TCP(sport=1, dport=80), 20)
    assert world.reply(error(version, ROUTER[version], client, quote, "time"))[0] == Reason.OK
    world.reply(back / TCP(sport=80, dport=1, flags="A", seq=9, ack=8))
    world.reply(back / TCP(sport=80, dport=1, flags="PA", seq=9, ack=8) / b"word")
    world.reply(back / TCP(sport=80, dport=1, flags="FA", seq=9, ack=8))
    world.reply(back / UDP(sport=80, dport=1))
    row = world.memory.backends[0, world.backends["web", backend]]
    told = {
        BackendCounter.CONNECTIONS: 1,
        BackendCounter.REFUSALS: 1,
        BackendCounter.ERRORS: 1,
        BackendCounter.RESETS: 1,
        BackendCounter.WORDS: 3,
    }
    assert {each: int(row[each]) for each in told} == told


def pieces(version: int, source: str, destination: str, upper: bytes, protocol: int) -> list[Any]:
    """A packet in two fragments."""
    first, rest = upper[:64], upper[64:]
    if version == 4:
        head = IP(src=source, dst=destination, proto=protocol, id=9)
        tail = head.copy()
        head.flags, tail.frag = "MF", 8
        return [head / Raw(first), tail / Raw(rest)]
    return [
        IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(nh=protocol, m=more, offset=offset) / Raw(data)
        for more, offset, data in ((1, 0, first), (0, 8, rest))
    ]


def transport(version: int, source: str, destination: str, layer: Any) -> bytes:
    """A transport packet with the checksum that the addresses call for."""
    return bytes(ip(version, source, destination) / layer)[20 if version == 4 else 40 :]


@both
@pytest.mark.parametrize("shared", [False, True])
def test_fragments_go_the_way_of_their_packet(version: int, shared: bool) -> None:
    services = [service("dns", VIPS, dict.fromkeys(ALL, 1), listen=["udp/53"])]
    if shared:
        services.append(service("ntp", VIPS, dict.fromkeys(ALL, 1), listen=["udp/123"]))
    world = World(*services)
    client, vip = CLIENT[version], VIP[version]
    backend = world.backend_of(ip(version, client, vip) / UDP(sport=1000, dport=53))
    layer = UDP(sport=1000, dport=53) / bytes(range(200))
    there = transport(version, client, vip, layer)
    changed = transport(version, client, backend, layer)
    for sent, expected in zip(
        pieces(version, client, vip, there, 17), pieces(version, client, backend, changed, 17), strict=True
    ):
        assert world.request(sent) == (Reason.OK, bytes(expected))
    layer = UDP(sport=53, dport=1000) / bytes(range(200))
    back = transport(version, backend, client, layer)
    changed = transport(version, vip, client, layer)
    for sent, expected in zip(
        pieces(version, backend, client, back, 17), pieces(version, vip, client, changed, 17), strict=True
    ):
        assert world.reply(sent) == (Reason.OK, bytes(expected))


@both
def test_what_a_backend_starts_itself_is_untouched(version: int) -> None:
    world = World(service("web", VIPS, dict.fromkeys(ALL, 1), listen=["tcp/80"]))
    backend, client = BACKENDS[version][0], CLIENT[version]
    syn = TCP(sport=80, dport=1000)
    assert world.reply(ip(version, backend, client) / syn)[0] == Reason.NO_FLOW
    backend = world.backend_of(ip(version, client, VIP[version]) / TCP(sport=1000, dport=80))
    assert world.reply(ip(version, backend, client) / syn)[0] == Reason.OK
    for layer in (TCP(sport=40000, dport=443), UDP(sport=40000, dport=53), echo(version, 5)):
        assert world.reply(ip(version, backend, client) / layer)[0] == Reason.NO_FLOW
    assert world.reply(ip(version, ROUTER[version], client) / syn)[0] == Reason.NO_FLOW


@both
def test_what_no_service_answers_is_untouched_and_takes_no_flow(version: int) -> None:
    world = World(service("web", VIPS, dict.fromkeys(ALL, 1), listen=["tcp/80", "udp/53-60"]))
    for destination, layer in (
        (VIP[version], TCP(dport=81)),
        (VIP[version], UDP(dport=61)),
        (VIP[version], echo(version, 80)),
        (ROUTER[version], TCP(dport=80)),
    ):
        assert world.request(ip(version, CLIENT[version], destination) / layer)[0] == Reason.NO_SERVICE
    assert world.flows() == 0


@both
def test_without_a_usable_backend(version: int) -> None:
    world = World(web())
    world.publish(web(), down=tuple(BACKENDS[version]))
    packet = ip(version, CLIENT[version], VIP[version]) / TCP(dport=80)
    assert world.request(packet)[0] == Reason.NO_BACKEND
    world.publish(web())
    assert world.backend_of(packet) in BACKENDS[version]
    world.publish(web(), down=tuple(BACKENDS[version]))
    assert world.request(packet)[0] == Reason.NO_BACKEND


@both
def test_flows_of_a_backend_that_is_down_move_and_the_others_stay(version: int) -> None:
    world = World(web())
    packets = [ip(version, CLIENT[version][:-1] + str(i), VIP[version]) / TCP(dport=80) for i in range(1, 31)]
    before = [world.backend_of(packet) for packet in packets]
    gone = BACKENDS[version][1]
    world.publish(web(), down=(gone,))
    after = [world.backend_of(packet) for packet in packets]
    assert gone not in after
    assert all(old in (new, gone) for old, new in zip(before, after, strict=True))
    assert after.count(BACKENDS[version][0]) == after.count(BACKENDS[version][2]) == 15
    assert world.flows() == 30
    moved = packets[before.index(gone)].src
    late = ip(version, gone, moved) / TCP(sport=80, dport=20)
    assert world.reply(late) == (Reason.OK, with_addresses(late, source=VIP[version]))
    assert world.reply(late, forgotten=True)[0] == Reason.NO_FLOW
    world.publish(web())
    assert [world.backend_of(packet) for packet in packets] == after


@both
def test_weight_zero_keeps_flows_and_takes_no_new_ones(version: int) -> None:
    world = World(web())
    packets = [ip(version, CLIENT[version][:-1] + str(i), VIP[version]) / TCP(dport=80) for i in range(1, 31)]
    before = [world.backend_of(packet) for packet in packets]
    drained = service("web", VIPS, {each: int(each != BACKENDS[version][0]) for each in ALL})
    world.publish(drained)
    assert [world.backend_of(packet) for packet in packets] == before
    fresh = [
        world.backend_of(ip(version, CLIENT[version][:-1] + f"{i}", VIP[version]) / TCP(dport=80))
        for i in range(40, 60)
    ]
    assert BACKENDS[version][0] not in fresh


@both
def test_a_reply_from_a_shared_backend_comes_from_the_right_vip(version: int) -> None:
    backend = BACKENDS[version][0]
    client = CLIENT[version]
    world = World(
        service("one", [VIP[version]], {backend: 1}, listen=["tcp/80", "icmp"]),
        service("two", [VIP2[version]], {backend: 1}, listen=["tcp/80", "tcp/81"]),
        service("three", [VIP[version]], {backend: 1}, listen=["tcp/82"]),
    )
    for vip, client_port, port in (
        (VIP, 1000, 80),
        (VIP2, 1001, 80),
        (VIP2, 1002, 81),
        (VIP, 1003, 82),
    ):
        packet = ip(version, client, vip[version]) / TCP(sport=client_port, dport=port)
        assert world.backend_of(packet) == backend
    for vip, client_port, port in (
        (VIP2, 1002, 81),
        (VIP, 1003, 82),
        (VIP, 1000, 80),
        (VIP2, 1001, 80),
    ):
        reply = ip(version, backend, client) / TCP(sport=port, dport=client_port)
        assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=vip[version]))
    unknown = ip(version, backend, client) / TCP(sport=80, dport=2000)
    assert world.reply(unknown)[0] == Reason.UNMARKED
    unknown = ip(version, backend, client) / TCP(sport=83, dport=2000)
    assert world.reply(unknown)[0] == Reason.NO_FLOW


@both
def test_connections_to_a_shared_backend_are_told_apart(version: int) -> None:
    """By protocol, and the last VIP counts where a client uses a port again."""
    backend, client = BACKENDS[version][0], CLIENT[version]
    world = World(service("web", [VIP[version], VIP2[version]], {backend: 1}))
    for layer, vip in ((TCP, VIP), (UDP, VIP2)):
        world.backend_of(ip(version, client, vip[version]) / layer(sport=1000, dport=53))
    for layer, vip in ((TCP, VIP), (UDP, VIP2)):
        reply = ip(version, backend, client) / layer(sport=53, dport=1000)
        assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=vip[version]))
    world.backend_of(ip(version, client, VIP2[version]) / TCP(sport=1000, dport=53))
    reply = ip(version, backend, client) / TCP(sport=53, dport=1000)
    assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=VIP2[version]))


@both
def test_a_flow_lives_as_long_as_its_protocol_says(version: int) -> None:
    world = World(web(tcp_idle_s=900, udp_idle_s=300, other_idle_s=60))
    for layer, idle_s in ((echo(version, 1), 60), (UDP(), 300), (TCP(), 900)):
        world.now_s += 1
        world.request(ip(version, CLIENT[version], VIP[version]) / layer)
        world.request(ip(version, CLIENT[version], VIP[version]) / layer)
        assert world.table.deadlines_s.max() == world.now_s + idle_s
    assert world.flows() == 1


@both
def test_a_flow_is_short_lived_until_a_second_packet_or_an_answer_comes(version: int) -> None:
    world = World(web(udp_idle_s=300, unconfirmed_s=10))

    def lives_s() -> int:
        entry, _ = find(world.table, flow)
        return int(world.table.deadlines_s[entry]) - world.now_s

    for source, answered in ((CLIENT[version], True), (CLIENT[version] + "1", False)):
        request = ip(version, source, VIP[version]) / UDP(sport=1, dport=2)
        backend = world.backend_of(request)
        part = next(part for part in world.parts if part.family == version)
        address = address128(ip_address(source))
        flow = unsigned(flow_of(world.table.secret, np.uint64(part.id), address))
        assert lives_s() == 10
        if answered:
            assert world.reply(ip(version, backend, source) / UDP(sport=2, dport=1))[0] == Reason.OK
        else:
            world.request(request)
        assert lives_s() == 300


@both
def test_a_server_that_streams_keeps_its_flow(version: int) -> None:
    world = World(web(udp_idle_s=300))
    backend = world.backend_of(ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2))
    for _ in range(5):
        reply = ip(version, backend, CLIENT[version]) / UDP(sport=2, dport=1)
        assert world.reply(reply)[0] == Reason.OK
        world.now_s += 250
        removed = np.zeros(MAX_VALUE + 1, np.int64)
        expire(world.table, 0, world.table.words.size, world.now_s, removed)
    assert world.flows() == 1


@both
def test_the_answer_to_a_syn_confirms_nothing(version: int) -> None:
    """SYNs from invented sources are answered too."""
    world = World(web(tcp_idle_s=900, unconfirmed_s=10))
    backend = world.backend_of(ip(version, CLIENT[version], VIP[version]) / TCP(sport=1, dport=2))
    for flags, lives_s in (("SA", 10), ("RA", 10), ("PA", 900)):
        assert (
            world.reply(ip(version, backend, CLIENT[version]) / TCP(sport=2, dport=1, flags=flags))[0]
            == Reason.OK
        )
        assert world.table.deadlines_s.max() == world.now_s + lives_s


@both
def test_a_forgotten_flow_is_entered_again_by_its_reply(version: int) -> None:
    world = World(web())
    request = ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2)
    backend = world.backend_of(request)
    reply = ip(version, backend, CLIENT[version]) / UDP(sport=2, dport=1)
    world.table.words[:] = 0
    assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=VIP[version]))
    assert world.flows() == 1
    for _ in range(5):
        assert world.backend_of(request) == backend


@both
def test_the_reply_of_a_moved_flow_comes_from_the_vip_and_moves_nothing(version: int) -> None:
    world = World(web())
    request = ip(version, CLIENT[version], VIP[version]) / TCP(sport=1, dport=2)
    before = world.backend_of(request)
    world.publish(web(), down=(before,))
    after = world.backend_of(request)
    world.publish(web())
    reply = ip(version, before, CLIENT[version]) / TCP(sport=2, dport=1, flags="PA")
    world.marks[connection_of(bytes(reply))] = next(iter(world.marks.values()))  # type: ignore[index]
    assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=VIP[version]))
    assert world.backend_of(request) == after


@both
@pytest.mark.parametrize(
    ("services", "reason"),
    [
        ([web()], Reason.OK),
        ([web(), service("mail", [VIP2[4], VIP2[6]], dict.fromkeys(ALL, 1))], Reason.OK),
        ([service("web", [*VIPS, VIP2[4], VIP2[6]], dict.fromkeys(ALL, 1))], Reason.UNMARKED),
        ([web(forwarding="conntrack")], Reason.UNMARKED),
    ],
)
def test_what_conntrack_forgot_is_found_by_its_flow_or_dropped(
    version: int, services: list[Service], reason: Reason
) -> None:
    world = World(*services)
    client = CLIENT[version]
    decision, result = world.decide(
        bytes(ip(version, client, VIP[version]) / UDP(sport=1, dport=2)), HOOK_PREROUTING
    )
    backend = (
        next(address for (_, address), n in world.backends.items() if n == decision.mark - BACKEND)
        if decision.verdict == NF_REPEAT
        else str((IP if version == 4 else IPv6)(result).dst)
    )
    reply = ip(version, backend, client) / UDP(sport=2, dport=1)
    got, after = world.reply(reply, forgotten=True)
    assert got == reason
    if reason == Reason.OK:
        assert after == with_addresses(reply, source=VIP[version])
    assert world.reply(ip(version, backend, ROUTER[version]) / UDP(sport=2, dport=1))[0] == Reason.NO_FLOW


@both
def test_a_backends_address_on_the_clients_side_is_dropped(version: int) -> None:
    world = World(web())
    for destination in (VIP[version], CLIENT[version]):
        packet = ip(version, BACKENDS[version][0], destination) / UDP()
        assert world.request(packet, mark=MISPLACED)[0] == Reason.MISPLACED
    packet = ip(version, CLIENT[version], VIP[version]) / UDP()
    assert world.request(packet, mark=MISPLACED)[0] == Reason.OK


@both
def test_where_the_kernel_goes_on_a_flow_lives_long_at_once(version: int) -> None:
    world = World(web(forwarding="conntrack", tcp_idle_s=900))
    world.decide(bytes(ip(version, CLIENT[version], VIP[version]) / TCP(dport=80)), HOOK_PREROUTING)
    assert world.table.deadlines_s.max() == world.now_s + 900


@both
def test_one_service_with_two_vips(version: int) -> None:
    backend, client = BACKENDS[version][0], CLIENT[version]
    world = World(service("web", [VIP[version], VIP2[version]], {backend: 1}))
    for vip, identifier in ((VIP2, 5), (VIP, 6)):
        assert world.backend_of(ip(version, client, vip[version]) / echo(version, identifier)) == backend
    for vip, identifier in ((VIP2, 5), (VIP, 6)):
        reply = ip(version, backend, client) / echo(version, identifier, reply=True)
        assert world.reply(reply) == (Reason.OK, with_addresses(reply, source=vip[version]))


@both
def test_a_reply_never_leaves_when_its_vip_service_or_backend_was_taken_away(version: int) -> None:
    """Where its VIP is still there, its client is told."""
    backend, other = BACKENDS[version][:2]
    client = CLIENT[version]
    for after, reason in (
        (service("web", [VIP[version]], {backend: 1}), Reason.GONE),
        (service("web", [VIP2[version]], {other: 1}), Reason.TOLD),
        (service("web", [VIP2[version]], {backend: 1}, listen=["tcp/81"]), Reason.TOLD),
    ):
        world = World(service("web", [VIP[version], VIP2[version]], {backend: 1}))
        world.backend_of(ip(version, client, VIP2[version]) / TCP(sport=1000, dport=80))
        world.publish(after)
        ends = {"sport": 80, "dport": 1000, "seq": 7, "ack": 9}
        reply = ip(version, backend, client) / TCP(**ends, flags="PA") / b"more"
        got, data = world.reply(reply)
        assert got == reason
        if reason == Reason.TOLD:
            reset = bytes(ip(version, VIP2[version], client) / TCP(**ends, flags="RA", window=0))
            assert data[: len(reset)] == reset
        own = ip(version, client, backend) / TCP(sport=1000, dport=80)
        if backend in [str(each.address) for each in after.backends]:
            assert world.reply(own)[0] == Reason.NO_FLOW


def error(version: int, source: str, destination: str, quote: bytes, kind: str) -> bytes:
    """An ICMP error that quotes `quote`, with every checksum computed by scapy."""
    if version == 4:
        layer = ICMP(type=11) if kind == "time" else ICMP(type=3, code=4, nexthopmtu=1400)
    else:
        layer = ICMPv6TimeExceeded() if kind == "time" else ICMPv6PacketTooBig(mtu=1300)
    return bytes(
        ip(version, source, destination, **{"ttl" if version == 4 else "hlim": 60}) / layer / Raw(quote)
    )


cuts = st.one_of(st.just(8), st.integers(8, 300).map(lambda n: n // 4 * 4))
kinds = st.sampled_from(["time", "mtu"])
quoted_layers = st.sampled_from(["tcp", "udp", "udp0", "echo"])


def layer_of(version: int, name: str, client_port: int, port: int, reply: bool) -> Any:
    ends = {"sport": port, "dport": client_port} if reply else {"sport": client_port, "dport": port}
    data = bytes(range(200))
    if name == "tcp":
        return TCP(**ends, flags="A", seq=7) / data
    if name == "echo":
        return echo(version, client_port, reply, data)
    return UDP(**ends, **({"chksum": 0} if name == "udp0" and version == 4 else {})) / data


def quote_of(version: int, source: str, destination: str, layer: Any, cut: int) -> bytes:
    return bytes(ip(version, source, destination) / layer)[: (20 if version == 4 else 40) + cut]


@both
@pytest.mark.parametrize("shared", [False, True])
@settings(deadline=None, max_examples=40)
@given(cut=cuts, kind=kinds, name=quoted_layers, client_port=numbers)
def test_errors_follow_their_flow(
    version: int, shared: bool, cut: int, kind: str, name: str, client_port: int
) -> None:
    services = [web(listen=["tcp/80", "udp/80", "icmp"])]
    if shared:
        services.append(service("mail", [VIP2[4], VIP2[6]], dict.fromkeys(ALL, 1)))
    world = World(*services)
    client, vip, router = CLIENT[version], VIP[version], ROUTER[version]
    asked = layer_of(version, name, client_port, 80, reply=False)
    answered = layer_of(version, name, client_port, 80, reply=True)
    backend = world.backend_of(ip(version, client, vip) / asked)

    for sender in (router, client):
        sent = error(version, sender, vip, quote_of(version, vip, client, answered, cut), kind)
        got = error(version, sender, backend, quote_of(version, backend, client, answered, cut), kind)
        assert world.request(sent) == (Reason.OK, got)

    quote = quote_of(version, client, backend, asked, cut)
    seen = quote_of(version, client, vip, asked, cut)
    from_backend = error(version, backend, client, quote, kind)
    assert world.reply(from_backend) == (Reason.OK, error(version, vip, client, seen, kind))
    from_router = error(version, router, client, quote, kind)
    assert world.reply(from_router) == (Reason.OK, error(version, router, client, seen, kind))


@both
def test_errors_without_a_flow_are_untouched(version: int) -> None:
    world = World(web())
    client, vip, router, backend = CLIENT[version], VIP[version], ROUTER[version], BACKENDS[version][0]
    layer = TCP(sport=80, dport=1000)
    about_vip = error(version, router, vip, quote_of(version, vip, client, layer, 20), "mtu")
    assert world.request(about_vip)[0] == Reason.NO_FLOW
    about_backend = error(version, router, client, quote_of(version, client, backend, layer, 20), "mtu")
    assert world.reply(about_backend)[0] == Reason.NO_FLOW
    assert world.request(error(version, router, vip, b"\0" * 40, "mtu"))[0] == Reason.BAD_QUOTE
    assert world.reply(error(version, router, client, b"\0" * 40, "mtu"))[0] == Reason.BAD_QUOTE
    assert world.flows() == 0


@both
def test_an_error_must_be_about_the_vip_that_it_is_sent_to(version: int) -> None:
    world = World(service("web", [VIP[version], VIP2[version]], dict.fromkeys(BACKENDS[version], 1)))
    client, vip, router = CLIENT[version], VIP[version], ROUTER[version]
    world.backend_of(ip(version, client, vip) / TCP(sport=1000, dport=80))
    layer = TCP(sport=80, dport=1000)
    for source, reason in ((vip, Reason.OK), (VIP2[version], Reason.NO_FLOW), (router, Reason.NO_FLOW)):
        quote = quote_of(version, source, client, layer, 20)
        assert world.request(error(version, router, vip, quote, "mtu"))[0] == reason


@both
def test_an_error_never_goes_to_a_backend_that_was_taken_away(version: int) -> None:
    world = World(web())
    client, vip = CLIENT[version], VIP[version]
    backend = world.backend_of(ip(version, client, vip) / TCP(sport=1000, dport=80))
    world.publish(service("web", VIPS, dict.fromkeys([each for each in ALL if each != backend], 1)))
    quote = quote_of(version, vip, client, TCP(sport=80, dport=1000), 20)
    assert world.request(error(version, ROUTER[version], vip, quote, "mtu"))[0] == Reason.NO_FLOW


@both
def test_a_foreign_value_in_the_table_is_never_taken_for_a_backend(version: int) -> None:
    """Two flows may have the same fingerprint: what is found under it may be a VIP's id."""
    world = World(web())
    packet = ip(version, CLIENT[version], VIP[version]) / TCP(dport=80)
    world.backend_of(packet)
    table = world.table
    (entry,) = np.flatnonzero(table.words)
    table.words[entry] |= np.uint64(0xFFFF)
    quote = quote_of(version, VIP[version], CLIENT[version], TCP(sport=80), 20)
    assert world.request(error(version, ROUTER[version], VIP[version], quote, "mtu"))[0] == Reason.NO_FLOW
    assert world.backend_of(packet) in BACKENDS[version]
    assert world.flows() == 1


def test_link_messages_are_never_touched() -> None:
    world = World(web())
    for layer in (ICMPv6ND_NS(tgt=VIP[6]), ICMPv6ND_NA(tgt=VIP[6]), ICMPv6ND_RS(), ICMPv6ND_RA()):
        for source, destination in ((CLIENT[6], VIP[6]), (BACKENDS[6][0], CLIENT[6])):
            packet = IPv6(src=source, dst=destination, hlim=255) / layer
            assert world.request(packet)[0] == Reason.LINK
            assert world.reply(packet)[0] == Reason.LINK
    redirect = IP(src=CLIENT[4], dst=VIP[4]) / ICMP(type=5, gw=CLIENT[4]) / Raw(bytes(28))
    assert world.request(redirect)[0] == Reason.LINK
    assert world.flows() == 0


@st.composite
def noise(draw: st.DrawFn) -> bytes:
    """Packets of our addresses with some bytes changed or cut off, or no packets at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    version = draw(st.sampled_from([4, 6]))
    ends = [VIP[version], VIP2[version], CLIENT[version], ROUTER[version], *BACKENDS[version]]
    source, destination = draw(st.sampled_from(ends)), draw(st.sampled_from(ends))
    quote = quote_of(version, destination, source, draw(exchanges(version))[0], draw(cuts))
    upper = draw(
        st.sampled_from(
            [
                bytes(ip(version, source, destination) / draw(exchanges(version))[0]),
                error(version, source, destination, quote, draw(kinds)),
                bytes(pieces(version, source, destination, bytes(100), 17)[draw(st.integers(0, 1))]),
                *(
                    [bytes(IPv6(src=source, dst=destination) / IPv6ExtHdrDestOpt() / TCP())]
                    if version == 6
                    else []
                ),
            ]
        )
    )
    data = bytearray(upper[: draw(st.integers(1, len(upper)))] if draw(st.booleans()) else upper)
    for at, value in draw(
        st.dictionaries(st.integers(0, min(len(data), 100) - 1), st.integers(0, 255), max_size=4)
    ).items():
        data[at] = value
    return bytes(data)


@settings(deadline=None, max_examples=300)
@given(packets=st.lists(noise(), min_size=1, max_size=8))
def test_noise_changes_nothing_outside_the_packet(packets: list[bytes]) -> None:
    world = World(
        web(listen=["tcp", "udp", "icmp"]),
        service("mail", [VIP2[4], VIP2[6]], dict.fromkeys([*BACKENDS[4][:1], *BACKENDS[6][:1]], 1)),
    )
    for data in packets:
        assert len(world.request(data)[1]) == len(data)
        assert len(world.reply(data)[1]) == len(data)


def test_a_flow_is_what_the_table_says() -> None:
    """Another worker's entry counts, as long as its backend is of this service."""
    world = World(web(), service("mail", [VIP2[4]], {"10.0.0.9": 1}))
    table, part = world.table, world.parts[0]
    flow = unsigned(flow_of(table.secret, np.uint64(part.id), address128(ip_address(CLIENT[4]))))
    for address, expected in (("10.0.0.2", ["10.0.0.2"]), ("10.0.0.9", BACKENDS[4])):
        name = "mail" if address == "10.0.0.9" else "web"
        table.words[:] = 0
        insert(table, flow, world.backends[name, address], 2000)
        assert world.backend_of(IP(src=CLIENT[4], dst=VIP[4]) / TCP()) in expected
    assert value_of(find(table, flow)[1]) != world.backends["mail", "10.0.0.9"]


@both
@pytest.mark.parametrize("flow", [False, True])
def test_what_a_backend_sends_and_cannot_be_read_is_its_own_as_long_as_no_flow_is_touched(
    version: int, flow: bool
) -> None:
    world = World(web())
    client = CLIENT[version]
    backend = world.backend_of(ip(version, client, VIP[version]) / UDP(sport=1, dport=2))
    destination = client if flow else ROUTER[version]
    udp = bytes(ip(version, backend, destination) / UDP(sport=2, dport=1) / b"data")
    upper = 20 if version == 4 else 40
    unreadable = {
        Reason.TRUNCATED: udp[:-1],
        Reason.BAD_UPPER_LENGTH: udp[: upper + 4] + b"\xff\xff" + udp[upper + 6 :],
        Reason.CHECKSUM_COVERS_ADDRESSES: bytes(
            ip(version, backend, destination, **{"proto" if version == 4 else "nh": 112}) / bytes(20)
        ),
    }
    if version == 4:
        routed = IP(src=backend, dst=destination, options=[b"\x83\x07\x04\x01\x02\x03\x04\x00"])
        unreadable[Reason.SOURCE_ROUTED] = bytes(routed / UDP())
    else:
        chain = IPv6(src=backend, dst=destination)
        for _ in range(MAX_EXTENSIONS + 1):
            chain = chain / IPv6ExtHdrDestOpt()
        unreadable[Reason.TOO_MANY_EXTENSIONS] = bytes(chain / UDP())
        unreadable[Reason.UNKNOWN_EXTENSION] = bytes(IPv6(src=backend, dst=destination, nh=135) / bytes(8))
    for reason, data in unreadable.items():
        decision, _ = world.decide(data, HOOK_POSTROUTING)
        assert decision.reason == reason
        assert decision.verdict == (NF_DROP if flow else NF_ACCEPT)
        assert world.decide(data, HOOK_PREROUTING)[0].verdict == NF_DROP


def test_fates_are_those_of_the_reasons() -> None:
    assert [r for r in Reason if r.from_client is Fate.PASS] == [
        Reason.OK,
        Reason.NO_SERVICE,
        Reason.NO_FLOW,
        Reason.LINK,
    ]
    assert [r for r in Reason if r.from_client is Fate.REJECT] == [Reason.ENDED, Reason.REJECTED]
    assert all(r.from_client is not Fate.PASS_UNLESS_FLOW for r in Reason), "a VIP's packet has no owner"
    assert [r for r in Reason if r.must_be_zero] == [Reason.NOT_IP, Reason.LOST_RACE]
    assert all(r.text for r in Reason)


@both
def test_a_packet_that_was_cut_or_whose_checksum_is_unknown_is_dropped(version: int) -> None:
    world = World(web())
    data = bytes(ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2) / b"data")
    decision, _ = world.decide(data, HOOK_PREROUTING, cut=True)
    assert (decision.verdict, decision.reason) == (NF_DROP, Reason.CUT)
    sctp = gre(version, ip(version, CLIENT[version], VIP[version]) / Raw(bytes(20)))
    decision, _ = world.decide(bytes(sctp), HOOK_PREROUTING, ready=False)
    assert (decision.verdict, decision.reason) == (NF_DROP, Reason.CHECKSUM_UNFINISHED)


@both
def test_the_packet_of_a_service_in_the_way_of_conntrack_gets_a_mark_and_stays_as_it_is(version: int) -> None:
    world = World(web(forwarding="conntrack"))
    data = bytes(ip(version, CLIENT[version], VIP[version]) / TCP(sport=1, dport=80))
    decision, result = world.decide(data, HOOK_PREROUTING)
    assert (decision.verdict, decision.changed, result) == (NF_REPEAT, False, data)
    assert decision.mark - BACKEND in world.backends.values()


@both
def test_flows_that_give_way_are_counted(version: int) -> None:
    world = World(web(), flows=2)
    packets = 40
    for number in range(packets):
        world.backend_of(ip(version, CLIENT[version][:-1] + str(number + 1), VIP[version]) / UDP())
    evicted = int(world.memory.flow_table[0, FlowTableCounter.EVICTIONS])
    assert evicted == packets - world.table.words.size
    assert world.flows() == world.table.words.size


@both
def test_open_flows_are_counted_whatever_becomes_of_them(version: int) -> None:
    world = World(web())
    for i in range(1, 31):
        world.backend_of(ip(version, CLIENT[version][:-1] + str(i), VIP[version]) / TCP(dport=80))

    def open_flows() -> list[int]:
        counts = world.memory.active.sum(axis=0)
        return [int(counts[world.backends["web", each]]) for each in BACKENDS[version]]

    assert open_flows() == [10, 10, 10]
    world.publish(web(), down=(BACKENDS[version][1],))
    for i in range(1, 31):
        world.backend_of(ip(version, CLIENT[version][:-1] + str(i), VIP[version]) / TCP(dport=80))
    assert open_flows() == [15, 0, 15]


def test_a_race_that_is_lost_again_and_again_is_no_lack_of_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    if not numba.config.DISABLE_JIT:
        pytest.skip("compiled, nothing can be put in place of another function")
    world = World(web())
    packet = IP(src=CLIENT[4], dst=VIP[4]) / TCP(dport=80)
    world.backend_of(packet)
    world.now_s += 10_000
    monkeypatch.setattr(home, "touch", lambda *_: False)
    decision, _ = world.decide(bytes(packet), HOOK_PREROUTING)
    assert (decision.verdict, decision.reason) == (NF_DROP, Reason.LOST_RACE)


@both
@pytest.mark.parametrize("size", [1, 1000])
def test_while_the_daemon_stops_one_end_resets_the_other(version: int, size: int) -> None:
    world = World(web())
    client, vip = CLIENT[version], VIP[version]
    ends = {"sport": 1000, "dport": 80, "seq": 7, "ack": 9}
    backend = world.backend_of(ip(version, client, vip) / TCP(**ends, flags="S"))
    (mark,) = world.marks.values()
    world.publish(web(), stops=dict.fromkeys(ALL, Stops.ENDING))
    options = [("Timestamp", (1, 2))]
    for source, destination, hook, reached in (
        (client, vip, HOOK_PREROUTING, (client, backend)),
        (backend, client, HOOK_POSTROUTING, (vip, client)),
    ):
        sport, dport = (1000, 80) if hook == HOOK_PREROUTING else (80, 1000)
        layer = TCP(sport=sport, dport=dport, seq=7, ack=9, flags="PA", options=options) / bytes(size)
        sent = bytes(ip(version, source, destination) / layer)
        for ready in (True, False):
            decision, result = world.decide(sent, hook, ready=ready, mark=mark)
            assert (decision.verdict, decision.reason) == (NF_ACCEPT, Reason.OK)
            reset = TCP(sport=sport, dport=dport, seq=7, ack=9, flags="RA", window=0)
            expected = bytes(ip(version, *reached) / reset)
            assert decision.end - START == len(expected)
            assert result[: len(expected)] == expected
    world.publish(web(), stops=dict.fromkeys(ALL, Stops.ENDED))
    sent = bytes(ip(version, client, vip) / TCP(**ends, flags="PA") / b"again")
    decision, _ = world.decide(sent, HOOK_PREROUTING)
    assert (decision.verdict, decision.mark, decision.reason) == (NF_ACCEPT, REJECTED, Reason.ENDED)


@both
@pytest.mark.parametrize(
    ("on_down", "layer", "there"),
    [
        ("move", TCP(dport=80, flags="A"), "other"),
        ("keep", TCP(dport=80, flags="S"), "same"),
        ("keep", UDP(dport=53), "same"),
        ({"udp": "keep"}, TCP(dport=80, flags="A"), "other"),
        ({"other": "keep"}, UDP(dport=53), "other"),
        ("reset", TCP(dport=80, flags="S"), "other"),
        ("reset", TCP(dport=80, flags="A"), "rejected"),
        ("reset", UDP(dport=53), "other"),
    ],
)
def test_what_becomes_of_the_flows_of_a_backend_that_is_down(
    version: int, on_down: Any, layer: Any, there: str
) -> None:
    world = World(web(on_down=on_down))
    packet = ip(version, CLIENT[version], VIP[version]) / layer
    before = world.backend_of(packet)
    world.publish(web(on_down=on_down), down=(before,))
    if there == "rejected":
        decision, _ = world.decide(bytes(packet), HOOK_PREROUTING)
        assert (decision.verdict, decision.mark, decision.reason) == (NF_ACCEPT, REJECTED, Reason.ENDED)
        reply = ip(version, before, CLIENT[version]) / TCP(sport=80, dport=20, flags="PA") / b"x"
        _, result = world.reply(reply)
        assert (IP if version == 4 else IPv6)(result)[TCP].flags == "RA"
    else:
        assert (world.backend_of(packet) == before) == (there == "same")


@both
def test_without_a_backend_a_service_may_reject(version: int) -> None:
    world = World(web())
    world.publish(web(all_down="reject"), down=tuple(ALL))
    for layer in (TCP(), UDP(), echo(version, 1)):
        decision, _ = world.decide(bytes(ip(version, CLIENT[version], VIP[version]) / layer), HOOK_PREROUTING)
        assert (decision.verdict, decision.mark, decision.reason) == (NF_ACCEPT, REJECTED, Reason.REJECTED)


@both
def test_a_connection_that_the_kernel_translated_is_told_too(version: int) -> None:
    """Once conntrack has been made to forget it, both ends' segments come to be decided."""
    service = web(forwarding="conntrack")
    world = World(service)
    client, vip = CLIENT[version], VIP[version]
    decision, _ = world.decide(bytes(ip(version, client, vip) / TCP(sport=1, dport=80)), HOOK_PREROUTING)
    backend = next(a for (_, a), n in world.backends.items() if n == decision.mark - BACKEND)
    world.publish(service, stops=dict.fromkeys(ALL, Stops.ENDING))
    for source, destination, sport, dport, reached in (
        (client, vip, 1, 80, (client, backend)),
        (backend, client, 80, 1, (vip, client)),
    ):
        layer = TCP(sport=sport, dport=dport, seq=7, ack=9, flags="PA") / b"more"
        hook = HOOK_PREROUTING if source == client else HOOK_POSTROUTING
        decision, result = world.decide(bytes(ip(version, source, destination) / layer), hook)
        expected = bytes(
            ip(version, *reached) / TCP(sport=sport, dport=dport, seq=7, ack=9, flags="RA", window=0)
        )
        assert (decision.verdict, result[: len(expected)]) == (NF_ACCEPT, expected)


@both
@pytest.mark.parametrize("forwarding", ["rewrite", "conntrack"])
def test_what_is_under_way_is_dropped_while_its_service_goes_over(version: int, forwarding: str) -> None:
    world = World(web(forwarding=forwarding))
    client, vip = CLIENT[version], VIP[version]
    begins = ip(version, client, vip) / TCP(sport=1, dport=80, flags="S")
    word = ip(version, client, vip) / TCP(sport=1, dport=80, flags="PA") / b"more"
    assert world.request(begins)[0] == Reason.OK
    world.snapshot.backend_flags[:] |= Flag.HELD
    assert world.request(begins)[0] == Reason.OK
    assert world.request(word)[0] == Reason.HELD
    assert world.request(ip(version, client, vip) / UDP(sport=1, dport=80))[0] == Reason.HELD
    replies = {
        world.reply(ip(version, backend, client) / TCP(sport=80, dport=1, flags="PA"), forgotten)[0]
        for backend in BACKENDS[version]
        for forgotten in (False, True)
    }
    assert Reason.HELD in replies
    assert Reason.OK not in replies


@both
def test_a_backend_that_is_taken_away_takes_no_new_flows_while_others_serve(version: int) -> None:
    world = World(web())
    gone = BACKENDS[version][0]
    world.publish(web(), stops={gone: Stops.ENDING})
    homes = {
        world.backend_of(ip(version, CLIENT[version][:-1] + str(i), VIP[version]) / TCP(dport=80))
        for i in range(1, 31)
    }
    assert homes == {*BACKENDS[version][1:]}


@both
def test_a_packet_that_the_kernel_cuts_into_several_becomes_a_reset_of_its_length(version: int) -> None:
    """A shorter one would be dropped where it is cut."""
    world = World(web())
    client, vip = CLIENT[version], VIP[version]
    backend = world.backend_of(ip(version, client, vip) / TCP(sport=1000, dport=80, flags="S"))
    (mark,) = world.marks.values()
    world.publish(web(), stops=dict.fromkeys(ALL, Stops.ENDING))
    data = bytes(range(250)) * 20
    sent = ip(version, backend, client) / TCP(sport=80, dport=1000, seq=7, ack=9, flags="PA") / data
    decision, result = world.decide(bytes(sent), HOOK_POSTROUTING, ready=False, mark=mark, several=True)
    assert (decision.verdict, decision.end - START) == (NF_ACCEPT, len(bytes(sent)))
    assert result == bytes(
        ip(version, vip, client) / TCP(sport=80, dport=1000, seq=7, ack=9, flags="RA") / data
    )


@both
def test_while_the_daemon_stops_no_connection_begins_and_other_protocols_go_on(version: int) -> None:
    world = World(web())
    world.publish(web(), stops=dict.fromkeys(ALL, Stops.ENDING))
    syn = bytes(ip(version, CLIENT[version], VIP[version]) / TCP(dport=80, flags="S"))
    decision, _ = world.decide(syn, HOOK_PREROUTING)
    assert (decision.verdict, decision.reason) == (NF_DROP, Reason.ENDING)
    assert world.backend_of(ip(version, CLIENT[version], VIP[version]) / UDP(dport=53)) in BACKENDS[version]
