"""What a service answers: how it is written, which rules bring it, and which packets are its own."""

from ipaddress import ip_network
from typing import Any

import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Raw
from world import BACKENDS, CLIENT, ROUTER, VIP, World

from loaded_mp.config.model import Config
from loaded_mp.datapath.messages import HOOK_PREROUTING
from loaded_mp.fields import Listener, port_range
from loaded_mp.network.rules import limits
from loaded_mp.packet.reasons import Reason
from loaded_mp.services import Ids, TooLargeError

both = pytest.mark.parametrize("version", [4, 6])
GRE = 47


def other(version: int, source: str, destination: str, number: int = GRE) -> Any:
    """A packet of a protocol without ports."""
    if version == 4:
        return IP(src=source, dst=destination, proto=number) / Raw(b"payload")
    return IPv6(src=source, dst=destination, nh=number) / Raw(b"payload")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("proto/47", ""),
        ("proto/1", "expected icmp, as protocol 1 is called here"),
        ("proto/6", "expected tcp"),
        ("proto/132", "expected sctp"),
        ("sctp", ""),
        ("sctp/2905", ""),
        ("sctp/2905-2910", ""),
        ("proto/58", "expected icmp"),
        ("proto/51", "expected another protocol: this one does not bear other addresses"),
        ("proto/0", "expected another protocol"),
        ("proto/256", "expected proto/NUMBER, the protocol's number from 1 to 255"),
        ("proto", "expected proto/NUMBER"),
        ("proto/gre", "expected proto/NUMBER"),
        ("gre", "expected tcp, udp, sctp, icmp, proto/NUMBER or mark/NUMBER"),
        ("mark/7", ""),
        ("mark/4294967295", ""),
        ("mark/0", "expected mark/NUMBER, a netfilter mark other than 0"),
        ("mark/x", "expected mark/NUMBER"),
        ("mark/4294967296", "expected mark/NUMBER"),
        ("mark/0x4c4d0007", "expected a mark below 0x4c4d0000 or above 0x4c4fffff"),
    ],
)
def test_protocols_and_marks_by_number(text: str, wrong: str) -> None:
    if wrong:
        with pytest.raises(ValidationError, match=wrong):
            Listener.model_validate(text)
    else:
        assert str(Listener.model_validate(text)) == text


@both
def test_a_protocol_by_its_number_has_a_service_of_its_own(version: int) -> None:
    first, second = BACKENDS[version][:2]
    world = World(
        service("tunnels", [VIP[version]], {first: 1}, listen=["proto/47"]),
        service("web", [VIP[version]], {second: 1}, listen=["tcp"]),
    )
    client, vip = CLIENT[version], VIP[version]
    assert world.request(other(version, client, vip)) == (Reason.OK, bytes(other(version, client, first)))
    assert world.reply(other(version, first, client)) == (Reason.OK, bytes(other(version, vip, client)))
    reply = other(version, first, client)
    assert world.reply(reply, forgotten=True) == (Reason.OK, bytes(other(version, vip, client)))
    assert world.request(other(version, client, vip, 200))[0] == Reason.NO_SERVICE
    assert world.backend_of((IP if version == 4 else IPv6)(src=client, dst=vip) / TCP()) == second


@pytest.mark.parametrize(
    ("listen", "family", "matches"),
    [
        (["proto/47", "tcp/80"], 4, ["-p 47", "-p tcp --dport 80"]),
        (["proto/47", "icmp"], 6, ["-p 47", "-p icmpv6"]),
        (["sctp/2905", "sctp/7-9"], 6, ["-p sctp --dport 2905", "-p sctp --dport 7:9"]),
        (["mark/0x10", "tcp/80"], 4, ["-m mark --mark 0x10", "-p tcp --dport 80"]),
    ],
)
def test_rules_of_listeners(listen: list[str], family: Any, matches: list[str]) -> None:
    assert limits(tuple(map(Listener.model_validate, listen)), family, "dport") == matches


@both
def test_each_address_of_a_network_is_a_vip(version: int) -> None:
    network = {4: "192.0.2.16/28", 6: "2001:db8::10/124"}[version]
    first, second = BACKENDS[version][:2]
    vips = [str(each) for each in ip_network(network)]
    world = World(
        service("web", [network], {first: 1}, listen=["tcp/80"]),
        service("mail", [vips[3]], {second: 1}, listen=["tcp/25"]),
    )
    assert len(world.parts[0].vips) == 16
    layer = IP if version == 4 else IPv6
    client = CLIENT[version]
    for number, vip in enumerate(vips):
        request = layer(src=client, dst=vip) / TCP(sport=1_000 + number, dport=80)
        assert world.backend_of(request) == first
    for number, vip in reversed(list(enumerate(vips))):
        _, data = world.reply(layer(src=first, dst=client) / TCP(sport=80, dport=1_000 + number))
        assert layer(data).src == vip
    assert world.backend_of(layer(src=client, dst=vips[3]) / TCP(dport=25)) == second
    assert world.request(layer(src=client, dst=vips[4]) / TCP(dport=25))[0] == Reason.NO_SERVICE


def test_networks_that_are_too_large_together_are_said_to_be() -> None:
    services = [service(f"s{n}", [f"10.{n}.0.0/20"], {"192.0.2.1": 1}) for n in range(2)]
    with pytest.raises(TooLargeError, match="needs 8,192 VIPs, each address of a network counts"):
        Ids().expand(Config(services=services))


def test_replies_to_packets_with_a_mark_may_be_anything() -> None:
    listen = tuple(map(Listener.model_validate, ["mark/7", "tcp/80"]))
    assert limits(listen, 4, "sport") == [""]


@both
def test_a_mark_of_the_operators_says_which_service(version: int) -> None:
    """It goes before protocols and ports; replies and errors are known without it."""
    first, second, third = BACKENDS[version]
    world = World(
        service("web", [VIP[version]], {first: 1}, listen=["tcp/80"]),
        service("marked", [VIP[version]], {second: 1}, listen=["mark/7"]),
        service("other", [VIP[version]], {third: 1}, listen=["mark/8", "udp/53"]),
    )
    layer, vip = (IP if version == 4 else IPv6), VIP[version]
    clients = [CLIENT[version][:-1] + str(number) for number in range(1, 6)]
    asked = [
        (TCP(sport=1_000, dport=80), 0, first),
        (TCP(sport=1_000, dport=80), 7, second),
        (UDP(sport=1_000, dport=9), 7, second),
        (TCP(sport=1_000, dport=80), 8, third),
        (UDP(sport=1_000, dport=53), 0, third),
    ]
    for client, (upper, mark, backend) in zip(clients, asked, strict=True):
        reason, data = world.request(layer(src=client, dst=vip) / upper, mark)
        assert (reason, layer(data).dst) == (Reason.OK, backend)
    for unanswered, mark in ((TCP(dport=81), 0), (TCP(dport=81), 9), (UDP(dport=9), 0)):
        assert world.request(layer(src=clients[0], dst=vip) / unanswered, mark)[0] == Reason.NO_SERVICE
    for client, (upper, _, backend) in zip(clients, asked, strict=True):
        turned = type(upper)(sport=upper.dport, dport=1_000)
        reply = layer(src=backend, dst=client) / turned
        for forgotten in (False, True):
            reason, data = world.reply(reply, forgotten)
            assert (reason, layer(data).src) == (Reason.OK, vip)
        quote = bytes(layer(src=vip, dst=client) / turned)[:48]
        kind = ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach()
        reason, data = world.request(layer(src=ROUTER[version], dst=vip) / kind / quote)
        assert (reason, layer(data).dst) == (Reason.OK, backend)


def test_backends_of_what_goes_by_a_mark_have_no_ports_of_their_own() -> None:
    assert port_range([Listener.model_validate(each) for each in ("mark/7", "tcp/80")]) is None


def sctp(version: int, source: str, destination: str, sport: int, dport: int, data: bytes = b"x") -> Any:
    layer = (IP if version == 4 else IPv6)(src=source, dst=destination)
    return layer / SCTP(sport=sport, dport=dport, tag=7) / SCTPChunkData(data=data)


@both
@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200))
def test_sctp_goes_by_its_ports_and_keeps_its_checksum(version: int, data: bytes) -> None:
    first, second = BACKENDS[version][:2]
    world = World(
        service("signals", [VIP[version]], {first: 1}, listen=["sctp/2905"], affinity="connection"),
        service("others", [VIP[version]], {second: 1}, listen=["sctp"]),
    )
    client, vip = CLIENT[version], VIP[version]
    for port, backend in ((2_905, first), (2_906, second)):
        request = sctp(version, client, vip, 1_000, port, data)
        expected = bytes(sctp(version, client, backend, 1_000, port, data))
        assert world.request(request) == (Reason.OK, expected)
        at = (20 if version == 4 else 40) + 8
        unfinished = bytes(request)[:at] + bytes(4) + bytes(request)[at + 4 :]
        decision, result = world.decide(unfinished, HOOK_PREROUTING, ready=False)
        assert (decision.reason, result) == (Reason.OK, expected)
        reply = sctp(version, backend, client, port, 1_000, data)
        back = bytes(sctp(version, vip, client, port, 1_000, data))
        assert world.reply(reply) == world.reply(reply, forgotten=True) == (Reason.OK, back)
    several = world.decide(
        bytes(sctp(version, client, vip, 1, 2_905)), HOOK_PREROUTING, ready=False, several=True
    )
    assert several[0].reason == Reason.CHECKSUM_UNFINISHED


def test_backends_of_sctp_have_no_ports_of_their_own() -> None:
    assert port_range([Listener.model_validate("sctp/2905")]) is None
