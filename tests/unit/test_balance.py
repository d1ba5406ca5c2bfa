"""One packet's decision, with scapy as the judge of every byte that comes out."""

from typing import Any

import numpy as np
import pytest
from building import build, service
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

from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.balance import Shared, to_backend, to_client
from loaded_mp.flows.table import find, flow_hash, insert, new_table, value_of
from loaded_mp.memory.snapshot import MAX_BACKENDS, MAX_SERVICES
from loaded_mp.packet.header import parse
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.snapshots import Ids

VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
VIP2 = {4: "192.0.2.20", 6: "2001:db8::20"}
CLIENT = {4: "198.51.100.7", 6: "2001:db8:c::7"}
ROUTER = {4: "10.9.9.9", 6: "fd00:9::9"}
BACKENDS = {4: ["10.0.0.1", "10.0.0.2", "10.0.0.3"], 6: ["fd00::1", "fd00::2", "fd00::3"]}
ALL = [*BACKENDS[4], *BACKENDS[6]]
VIPS = [VIP[4], VIP[6]]
START = 8
CANARY = 0xA5
both = pytest.mark.parametrize("version", [4, 6])


class World:
    """Snapshot, flow table and counters of one worker."""

    def __init__(self, *services: Service) -> None:
        self.ids = Ids()
        self.publish(*services)
        self.shared = Shared(
            new_table(65_536, np.array([1, 2], np.uint64)),
            np.zeros(MAX_SERVICES, np.uint64),
            np.zeros((MAX_BACKENDS, 5), np.uint64),
            np.zeros(1, np.uint64),
        )
        self.now_s = 1000

    def publish(self, *services: Service, down: tuple[str, ...] = ()) -> None:
        parts = self.ids.expand(Config(services=services))
        self.backends = {
            (part.service.name, str(backend.address)): number
            for part in parts
            for number, backend in part.backends.items()
        }
        numbers = tuple(number for (_, address), number in self.backends.items() if address in down)
        self.snapshot, self.parts = build(*services, ids=self.ids, down=numbers)

    def _decide(self, data: bytes, request: bool) -> tuple[Reason, bytes]:
        buffer = np.full(START + len(data) + 8, CANARY, np.uint8)
        buffer[START : START + len(data)] = np.frombuffer(data, np.uint8)
        header = parse(buffer, START, START + len(data), False)
        reason = header.reason
        if reason == Reason.OK:
            if request:
                reason, _ = to_backend(buffer, START, header, self.snapshot, self.shared, self.now_s)
            else:
                reason = to_client(buffer, START, header, self.snapshot, self.shared)
        assert (buffer[:START] == CANARY).all()
        assert (buffer[-8:] == CANARY).all()
        result = buffer[START:-8].tobytes()
        if reason != Reason.OK:
            assert result == data
        return Reason(reason), result

    def request(self, packet: Any) -> tuple[Reason, bytes]:
        """What becomes of a packet for a VIP."""
        return self._decide(bytes(packet), True)

    def reply(self, packet: Any) -> tuple[Reason, bytes]:
        """What becomes of a packet from the backends' side."""
        return self._decide(bytes(packet), False)

    def backend_of(self, packet: Any) -> str:
        """The address of the backend that a packet for a VIP goes to."""
        reason, result = self.request(packet)
        assert reason == Reason.OK
        return str((IP if result[0] >> 4 == 4 else IPv6)(result).dst)

    def flows(self) -> int:
        return int(np.count_nonzero(self.shared.table.words >> np.uint64(24)))


def web(**more: Any) -> Service:
    """Everything of both VIPs, to three backends of each family."""
    return service("web", VIPS, dict.fromkeys(ALL, 1), **more)


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
    sources = 10_000
    weights = dict(zip(BACKENDS[version], (5, 3, 2), strict=True))
    world = World(service("web", [VIP[version]], weights))
    data = bytes(ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2))
    at, end = (12, 16) if version == 4 else (8, 24)
    for i in range(sources):
        source = (int.from_bytes(data[at:end]) + (i << 40 if version == 6 else i)).to_bytes(end - at)
        assert world.request(data[:at] + source + data[end:])[0] == Reason.OK
    new_flows = [int(world.shared.traffic[world.backends["web", each], 4]) for each in BACKENDS[version]]
    assert new_flows == [sources * weight // 10 for weight in (5, 3, 2)]


@both
def test_traffic_is_counted_by_backend(version: int) -> None:
    world = World(web())
    request = ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2) / b"question"
    backend = world.backend_of(request)
    reply = ip(version, backend, CLIENT[version]) / UDP(sport=2, dport=1) / b"a longer answer"
    world.reply(reply)
    world.reply(reply)
    row = world.shared.traffic[world.backends["web", backend]].tolist()
    assert row == [1, len(bytes(request)), 2, 2 * len(bytes(reply)), 1]
    assert int(world.shared.traffic.sum()) == sum(row)


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
    late = TCP(sport=80, dport=20)
    moved = packets[before.index(gone)].src
    assert world.reply(ip(version, gone, moved) / late)[0] == Reason.NO_FLOW
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
        assert world.shared.table.deadlines_s.max() == world.now_s + idle_s
    assert world.flows() == 1


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
def test_a_shared_backend_forgets_a_vip_that_was_taken_away(version: int) -> None:
    backend, client = BACKENDS[version][0], CLIENT[version]
    world = World(service("web", [VIP[version], VIP2[version]], {backend: 1}))
    world.backend_of(ip(version, client, VIP2[version]) / TCP(sport=1000, dport=80))
    world.publish(
        service("web", [VIP[version]], {backend: 1}),
        service("mail", [VIP[version]], {backend: 1}, listen=["tcp/25"]),
    )
    reply = ip(version, backend, client) / TCP(sport=80, dport=1000)
    assert world.reply(reply)[0] == Reason.NO_FLOW


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
    table = world.shared.table
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
    table, part = world.shared.table, world.parts[0]
    client = np.uint64(0), np.uint64(0xFFFF << 32 | int.from_bytes(bytes([198, 51, 100, 7])))
    flow = flow_hash(table, part.id, *client)
    for address, expected in (("10.0.0.2", ["10.0.0.2"]), ("10.0.0.9", BACKENDS[4])):
        name = "mail" if address == "10.0.0.9" else "web"
        table.words[:] = 0
        insert(table, flow, world.backends[name, address], 2000, *client)
        assert world.backend_of(IP(src=CLIENT[4], dst=VIP[4]) / TCP()) in expected
    assert value_of(find(table, flow)[1]) != world.backends["mail", "10.0.0.9"]
