"""What a service answers: how it is written, which rules bring it, and which packets are its own."""

from typing import Any

import pytest
from building import service
from pydantic import ValidationError
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from world import BACKENDS, CLIENT, VIP, World

from loaded_mp.fields import Listener
from loaded_mp.network.rules import limits
from loaded_mp.packet.reasons import Reason

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
        ("proto/58", "expected icmp"),
        ("proto/51", "expected another protocol: this one does not bear other addresses"),
        ("proto/0", "expected another protocol"),
        ("proto/256", "expected proto/NUMBER, the protocol's number from 1 to 255"),
        ("proto", "expected proto/NUMBER"),
        ("proto/gre", "expected proto/NUMBER"),
        ("gre", "expected tcp, udp, icmp or proto/NUMBER"),
    ],
)
def test_protocols_by_number(text: str, wrong: str) -> None:
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
    ],
)
def test_rules_of_listeners(listen: list[str], family: Any, matches: list[str]) -> None:
    assert limits(tuple(map(Listener.model_validate, listen)), family, "dport") == matches
