"""What makes packets one flow."""

from typing import Any

import pytest
from building import service
from pydantic import ValidationError
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from world import ALL, BACKENDS, VIP, VIPS, World, client, web

from loaded_mp.config.model import ClientAffinity
from loaded_mp.packet.reasons import Reason

both = pytest.mark.parametrize("version", [4, 6])


def packet(version: int, source: str, layer: Any) -> Any:
    return (IP if version == 4 else IPv6)(src=source, dst=VIP[version]) / layer


def reply(version: int, backend: str, to: str, layer: Any) -> Any:
    return (IP if version == 4 else IPv6)(src=backend, dst=to) / layer


@pytest.mark.parametrize(
    ("text", "prefixes"),
    [
        ("source", (32, 128)),
        ("source/24", (24, 128)),
        ("source/64", (32, 64)),
        ("source/20/56", (20, 56)),
        ("connection", (32, 128)),
    ],
)
def test_how_it_is_written(text: str, prefixes: tuple[int, int]) -> None:
    affinity = ClientAffinity.model_validate(text)
    assert (affinity.prefix4, affinity.prefix6) == prefixes
    assert ClientAffinity.model_validate(str(affinity)) == affinity


@pytest.mark.parametrize(
    "text", ["client", "source/", "source/0", "source/33/64", "connection/24", "source/24/129"]
)
def test_what_is_no_affinity(text: str) -> None:
    with pytest.raises(ValidationError):
        ClientAffinity.model_validate(text)


@pytest.mark.parametrize(("text", "vips"), [("source/24", VIPS[1:]), ("source/64", VIPS[:1])])
def test_networks_of_no_family_of_the_service_are_a_mistake(text: str, vips: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"affinity: found .*, expected some of IPv"):
        service("web", vips, dict.fromkeys(BACKENDS[4 if vips[0] == VIP[4] else 6], 1), affinity=text)


@both
def test_a_network_is_one_client(version: int) -> None:
    world = World(web(affinity="source/24/64"))
    homes = [
        {world.backend_of(packet(version, client(version, n, h), UDP())) for h in range(1, 20)}
        for n in range(9)
    ]
    assert all(len(each) == 1 for each in homes)
    assert set().union(*homes) == {*BACKENDS[version]}
    assert world.flows() == 9


@both
def test_connections_of_one_client_are_spread_and_each_stays(version: int) -> None:
    world = World(web(affinity="connection"))
    source = client(version, 0, 1)
    homes = {
        port: world.backend_of(packet(version, source, TCP(sport=port, dport=80))) for port in range(1, 31)
    }
    assert [list(homes.values()).count(each) for each in BACKENDS[version]] == [10, 10, 10]
    for port, backend in homes.items():
        assert world.backend_of(packet(version, source, TCP(sport=port, dport=80, flags="A"))) == backend
        assert (
            world.reply(reply(version, backend, source, TCP(sport=80, dport=port, flags="A")))[0] == Reason.OK
        )
    assert world.flows() == 30


@both
@pytest.mark.parametrize("ends", ["client", "backend"])
@pytest.mark.parametrize("flags", ["FA", "R"])
def test_a_connection_is_no_open_flow_once_it_has_ended(version: int, ends: str, flags: str) -> None:
    world = World(web(affinity="connection", tcp_idle_s=900, tcp_fin_idle_s=60))
    source = client(version, 0, 1)

    def say(flags: str) -> str:
        return world.backend_of(packet(version, source, TCP(sport=1, dport=80, flags=flags)))

    backend = say("S")
    say("A")
    assert world.table.deadlines_s.max() == world.now_s + 900
    assert int(world.memory.active.sum()) == 1
    if ends == "client":
        say(flags)
    else:
        world.reply(reply(version, backend, source, TCP(sport=80, dport=1, flags=flags)))
    for _ in range(2):
        assert int(world.memory.active.sum()) == 0
        assert say("A") == backend
        world.reply(reply(version, backend, source, TCP(sport=80, dport=1, flags="A")))
        assert world.table.deadlines_s.max() == world.now_s + 60
    say("S")
    assert int(world.memory.active.sum()) == 1, "the same ports are a connection again"


@both
def test_with_source_affinity_a_fin_ends_nothing(version: int) -> None:
    world = World(web())
    source = client(version, 0, 1)
    for flags in ("S", "A", "FA"):
        world.backend_of(packet(version, source, TCP(sport=1, dport=80, flags=flags)))
    assert int(world.memory.active.sum()) == 1


@both
def test_without_affinity_each_packet_goes_by_itself(version: int) -> None:
    world = World(service("dns", VIPS, dict.fromkeys(ALL, 1), affinity="none", listen=["udp/53"]))
    source = client(version, 0, 1)
    asked = packet(version, source, UDP(sport=1, dport=53))
    homes = [world.backend_of(asked) for _ in range(9)]
    assert [homes.count(each) for each in BACKENDS[version]] == [3, 3, 3]
    assert world.flows() == 0
    for backend in BACKENDS[version]:
        answer = reply(version, backend, source, UDP(sport=53, dport=1))
        for forgotten in (False, True):
            reason, data = world.reply(answer, forgotten=forgotten)
            assert reason == Reason.OK
            assert (IP if version == 4 else IPv6)(data).src == VIP[version]
    with pytest.raises(ValidationError, match="udp only"):
        service("web", VIPS, dict.fromkeys(ALL, 1), affinity="none")
