"""Backends with ports of their own, with scapy as the judge of every byte."""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from world import CLIENT, ROUTER, VIP, VIP2, World

from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING
from loaded_mp.fields import Endpoint, Listener, Ports, port_range
from loaded_mp.memory.marks import VIP as VIP_MARK
from loaded_mp.memory.snapshot import MAX_VIPS
from loaded_mp.packet.reasons import Reason
from loaded_mp.services import Ids, IdTable, TooLargeError

both = pytest.mark.parametrize("version", [4, 6])
MACHINES = {4: ["10.0.0.1", "10.0.0.2"], 6: ["fd00::1", "fd00::2"]}


def at(version: int, machine: int, port: int | None) -> str:
    return str(Endpoint(ip_address(MACHINES[version][machine]), port))


def ip(version: int, source: str, destination: str) -> Any:
    return (IP if version == 4 else IPv6)(src=source, dst=destination)


def ends(data: bytes) -> tuple[str, int, str, int]:
    packet = (IP if data[0] >> 4 == 4 else IPv6)(data)
    upper = packet.payload
    return packet.src, upper.sport, packet.dst, upper.dport


def unreachable(version: int, source: str, destination: str, quote: bytes) -> bytes:
    kind = ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach()
    return bytes(ip(version, source, destination) / kind / quote)


ports = st.integers(1, 65_535)


@both
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_there_and_back_with_every_checksum(version: int, data: st.DataObject) -> None:
    """Of a range the offset stays; ICMP errors in both directions quote what their receiver has sent."""
    length = data.draw(st.integers(1, 300))
    first, own = (data.draw(st.integers(1, 65_536 - length)) for _ in range(2))
    client_port, offset = data.draw(ports), data.draw(st.integers(0, length - 1))
    layer: Callable[..., Any] = data.draw(st.sampled_from([TCP, UDP]))
    affinity = data.draw(st.sampled_from(["source", "connection"]))
    load = data.draw(st.binary(max_size=300))
    listen = [f"{protocol}/{first}-{first + length - 1}" for protocol in ("tcp", "udp")]
    backend = at(version, 0, own)
    world = World(service("web", [VIP[version]], {backend: 1}, listen=listen, affinity=affinity))
    machine, client, vip = MACHINES[version][0], CLIENT[version], VIP[version]
    asked, answering = first + offset, own + offset

    request = ip(version, client, vip) / layer(sport=client_port, dport=asked) / load
    there = bytes(ip(version, client, machine) / layer(sport=client_port, dport=answering) / load)
    assert world.request(request) == (Reason.OK, there)
    reply = ip(version, machine, client) / layer(sport=answering, dport=client_port) / load
    back = bytes(ip(version, vip, client) / layer(sport=asked, dport=client_port) / load)
    assert world.reply(reply) == (Reason.OK, back)
    assert world.flows() == 1
    assert world.reply(reply, forgotten=True) == (Reason.OK, back)

    cut = 2 * data.draw(st.integers(4, 200))  # never within a checksum
    headers = 20 if version == 4 else 40
    about = unreachable(version, ROUTER[version], vip, back[: headers + cut])
    wanted = unreachable(version, ROUTER[version], machine, bytes(reply)[: headers + cut])
    assert world.request(about) == (Reason.OK, wanted)
    about = unreachable(version, machine, client, there[: headers + cut])
    wanted = unreachable(version, vip, client, bytes(request)[: headers + cut])
    assert world.reply(about) == (Reason.OK, wanted)


@both
def test_several_backends_on_one_address(version: int) -> None:
    endpoints = [at(version, 0, 8_080), at(version, 0, 8_081), at(version, 0, None), at(version, 1, 80)]
    web = service("web", [VIP[version]], dict.fromkeys(endpoints, 1), listen=["tcp/80", "icmp"])
    world = World(web)
    seen = set()
    for number in range(1, 9):
        client = CLIENT[version][:-1] + str(number)
        reason, sent = world.request(ip(version, client, VIP[version]) / TCP(sport=1_000, dport=80))
        _, _, machine, port = ends(sent)
        assert reason == Reason.OK
        seen.add((machine, port))
        reply = ip(version, machine, client) / TCP(sport=port, dport=1_000, flags="A")
        assert ends(world.reply(reply)[1]) == (VIP[version], 80, client, 1_000)
        stray = ip(version, machine, client) / TCP(sport=8_082, dport=1_000)
        assert world.reply(stray)[0] == Reason.NO_FLOW
    assert seen == {(machine, port or 80) for each in endpoints for machine, port in [parts(each)]}
    assert [int(each) for each in world.memory.active.sum(axis=0)[list(world.backends.values())]] == [2] * 4


def parts(text: str) -> tuple[str, int | None]:
    endpoint = Endpoint.read(text)
    return str(endpoint.ip), endpoint.port


@both
def test_a_ping_belongs_to_the_backend_that_has_the_client(version: int) -> None:
    endpoints = [at(version, 0, 8_080), at(version, 0, 8_081)]
    world = World(service("web", [VIP[version]], dict.fromkeys(endpoints, 1), listen=["tcp/80", "icmp"]))
    asking, answering = (
        (ICMP(type=8, id=8_081), ICMP(type=0, id=8_081))
        if version == 4
        else (ICMPv6EchoRequest(id=8_081), ICMPv6EchoReply(id=8_081))
    )
    for number in range(1, 5):
        client = CLIENT[version][:-1] + str(number)
        assert world.request(ip(version, client, VIP[version]) / asking)[0] == Reason.OK
        reply = ip(version, MACHINES[version][0], client) / answering
        wanted = bytes(ip(version, VIP[version], client) / answering)
        assert world.reply(reply) == (Reason.OK, wanted)
        assert world.reply(reply, forgotten=True) == (Reason.OK, wanted)
    counted = world.memory.backends[0, list(world.backends.values()), :3].tolist()
    assert counted[0] == counted[1]


@both
def test_one_endpoint_in_several_services_answers_by_the_right_vip_and_port(version: int) -> None:
    backend = at(version, 0, 8_080)
    world = World(
        service("one", [VIP[version], VIP2[version]], {backend: 1}, listen=["tcp/80"]),
        service("two", [VIP[version]], {backend: 1}, listen=["tcp/81"]),
        service("three", [VIP[version]], {at(version, 0, None): 1}, listen=["tcp/8080"]),
    )
    client, machine = CLIENT[version], MACHINES[version][0]
    asked = [(VIP, 80), (VIP, 81), (VIP2, 80), (VIP, 8_080)]
    for number, (vip, port) in enumerate(asked):
        sent = world.request(ip(version, client, vip[version]) / TCP(sport=1_000 + number, dport=port))[1]
        assert ends(sent) == (client, 1_000 + number, machine, 8_080)
    for number, (vip, port) in reversed(list(enumerate(asked))):
        reply = ip(version, machine, client) / TCP(sport=8_080, dport=1_000 + number)
        assert ends(world.reply(reply)[1]) == (vip[version], port, client, 1_000 + number)
        assert world.reply(reply, forgotten=True)[0] == Reason.UNMARKED


@both
@pytest.mark.parametrize("affinity", ["source", "connection"])
def test_a_connection_lives_while_services_and_vips_come_and_names_change(
    version: int, affinity: str
) -> None:
    def web(name: str = "web", vips: tuple[str, ...] = (), **ports: int) -> Service:
        backends = {at(version, 0, 8_080): 1, **{at(version, 1, port): 1 for port in ports.values()}}
        return service(name, [VIP[version], *vips], backends, listen=["tcp/80"], affinity=affinity)

    other = service("other", [VIP[version]], {at(version, 0, 8_080): 1}, listen=["tcp/81"])
    world = World(web())
    client, machine = CLIENT[version], MACHINES[version][0]
    request = ip(version, client, VIP[version]) / TCP(sport=1_000, dport=80, flags="A")
    reply = ip(version, machine, client) / TCP(sport=8_080, dport=1_000, flags="PA") / b"more"
    assert world.request(request)[0] == Reason.OK
    before = Config(services=(web(),))
    for services in (
        (web(), other),
        (web(vips=(VIP2[version],)), other),
        (web(vips=(VIP2[version],), more=9_090), other),
        (web("www", (VIP2[version],), more=9_090), other),
    ):
        world.ids.expand(Config(services=services), Ids().expand(before))
        before = Config(services=services)
        world.publish(*services)
        assert ends(world.reply(reply)[1]) == (VIP[version], 80, client, 1_000)
        assert ends(world.request(request)[1]) == (client, 1_000, machine, 8_080)


@both
def test_a_backend_whose_port_changes_is_another_one(version: int) -> None:
    """The client of the one that is gone is told, by the port that it knows."""
    world = World(service("web", [VIP[version]], {at(version, 0, 8_080): 1}, listen=["tcp/80"]))
    client, machine = CLIENT[version], MACHINES[version][0]
    world.request(ip(version, client, VIP[version]) / TCP(sport=1_000, dport=80))
    world.publish(service("web", [VIP[version]], {at(version, 0, 8_081): 1}, listen=["tcp/80"]))
    layer = {"dport": 1_000, "seq": 7, "ack": 9}
    reason, told = world.reply(ip(version, machine, client) / TCP(sport=8_080, **layer, flags="PA") / b"x")
    reset = bytes(ip(version, VIP[version], client) / TCP(sport=80, **layer, flags="RA", window=0))
    assert (reason, told[: len(reset)]) == (Reason.TOLD, reset)


@both
def test_unfinished_checksums_are_computed_with_the_port(version: int) -> None:
    world = World(service("web", [VIP[version]], {at(version, 0, 8_080): 1}, listen=["tcp/80"]))
    client, machine = CLIENT[version], MACHINES[version][0]
    sent = ip(version, client, VIP[version]) / TCP(sport=1, dport=80, chksum=0x1234) / bytes(9_000)
    decision, result = world.decide(bytes(sent), HOOK_PREROUTING, ready=False, several=True)
    assert result == bytes(ip(version, client, machine) / TCP(sport=1, dport=8_080) / bytes(9_000))
    sent = ip(version, machine, client) / TCP(sport=8_080, dport=1, chksum=0x1234) / bytes(9_000)
    _, result = world.decide(bytes(sent), HOOK_POSTROUTING, ready=False, mark=decision.mark, several=True)
    assert result == bytes(ip(version, VIP[version], client) / TCP(sport=80, dport=1) / bytes(9_000))


def test_marks_mean_the_same_after_a_start_with_nothing() -> None:
    services = [
        service(name, [VIP[4]], {"10.0.0.1": 1}, listen=[f"tcp/{n}"]) for n, name in enumerate("ab", 1)
    ]
    first = Ids().expand(Config(services=services))
    later = Ids().expand(Config(services=services[::-1]))
    assert {part.service.name: part.vips for part in first.parts} == {
        part.service.name: part.vips for part in later.parts
    }
    assert len({number for part in first.parts for number in part.vips}) == 2
    assert VIP_MARK & (MAX_VIPS - 1) == 0


def test_a_number_that_is_retired_is_given_to_others_last() -> None:
    table: IdTable[str] = IdTable("letters", 3)
    assert [table.id_of(key) for key in "abc"] == [0, 1, 2]
    with pytest.raises(TooLargeError):
        table.require_room("d")
    table.retire(1)
    table.retire(0)
    table.require_room("d")
    assert table.id_of("a") == 0
    assert table.id_of("d") == 1
    assert dict(table.items()) == {"a": 0, "c": 2, "d": 1}
    with pytest.raises(TooLargeError):
        table.require_room("b")


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("10.0.0.1", "10.0.0.1", None),
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("fd00::1", "fd00::1", None),
        ("fd00::1:80", "fd00::1:80", None),
        ("[fd00:0::1]:65535", "fd00::1", 65_535),
    ],
)
def test_endpoints_are_read_and_written(text: str, address: str, port: int | None) -> None:
    endpoint = Endpoint.read(text)
    assert (str(endpoint.ip), endpoint.port) == (address, port)
    assert Endpoint.read(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "[10.0.0.1]:80", "[fd00::1]", "fd00::1]:8"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Endpoint.read(text)


@pytest.mark.parametrize(
    ("listen", "ports"),
    [
        (["tcp/80"], Ports(80, 80)),
        (["tcp/53", "udp/53", "icmp"], Ports(53, 53)),
        (["udp/5000-5010"], Ports(5_000, 5_010)),
        (["tcp/80", "tcp/443"], None),
        (["tcp"], None),
        (["icmp"], None),
        ([], None),
    ],
)
def test_ports_that_a_backends_own_may_stand_for(listen: list[str], ports: Ports | None) -> None:
    assert port_range([Listener.model_validate(each) for each in listen]) == ports
