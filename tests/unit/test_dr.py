"""Direct routing: packets stay as they are and get the mark of their backend; replies are never seen."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from test_balance import (
    both,
    cuts,
    error,
    exchanges,
    gre,
    ip,
    kinds,
    layer_of,
    numbers,
    quote_of,
    quoted_layers,
    with_addresses,
)
from world import ALL, CLIENT, ROUTER, START, VIP, World, web

from loaded_mp.config.model import Service
from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING, NF_ACCEPT, NF_REPEAT
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import BACKEND, REJECTED, VIP_MASK
from loaded_mp.memory.marks import VIP as VIP_MARK
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.state import Stops


def direct(**more: Any) -> Service:
    return web(forwarding="dr", **more)


def sent(world: World, packet: Any, cut: bool = False) -> int:
    """The id of the backend that a packet is sent to, as it is."""
    decision, result = world.decide(bytes(packet), HOOK_PREROUTING, cut=cut)
    assert (decision.verdict, decision.changed, decision.reason) == (NF_REPEAT, False, Reason.OK)
    assert result == bytes(packet)
    assert decision.mark - BACKEND in world.backends.values()
    return decision.mark - BACKEND


@both
@settings(deadline=None, max_examples=40)
@given(data=st.data(), cut=st.booleans())
def test_each_packet_is_sent_to_one_backend_as_it_is(version: int, data: st.DataObject, cut: bool) -> None:
    world = World(direct())
    request = gre(version, ip(version, CLIENT[version], VIP[version]) / data.draw(exchanges(version))[0])
    backend = sent(world, request, cut)
    assert {sent(world, request) for _ in range(3)} == {backend}
    row = world.memory.backends[0, backend]
    assert row[BackendCounter.TO_BACKEND_PACKETS] == 4
    assert row[BackendCounter.TO_BACKEND_BYTES] == 4 * len(bytes(request))
    assert row[BackendCounter.NEW_FLOWS] == world.flows() == 1


@both
def test_a_second_packet_confirms_a_flow_and_each_renews_it(version: int) -> None:
    world = World(direct(udp_idle_s=300, unconfirmed_s=10))
    request = ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2)
    for lives_s in (10, 300, 300):
        world.now_s += 5
        sent(world, request)
        assert world.table.deadlines_s.max() - world.now_s == lives_s


@both
def test_the_clients_end_of_a_connection_ends_its_flow(version: int) -> None:
    world = World(direct(affinity="connection", tcp_fin_idle_s=7))
    for flags in ("S", "A", "FA"):
        backend = sent(world, ip(version, CLIENT[version], VIP[version]) / TCP(sport=1, dport=2, flags=flags))
        assert world.memory.active[:, backend].sum() == (flags != "FA")
    assert world.table.deadlines_s.max() - world.now_s == 7


@both
@settings(deadline=None, max_examples=20)
@given(cut=cuts, kind=kinds, name=quoted_layers, client_port=numbers)
def test_errors_go_to_the_backend_of_their_client_as_they_are(
    version: int, cut: int, kind: str, name: str, client_port: int
) -> None:
    world = World(direct(listen=["tcp/80", "udp/80", "icmp"]))
    client, vip = CLIENT[version], VIP[version]
    backend = sent(world, ip(version, client, vip) / layer_of(version, name, client_port, 80, reply=False))
    answered = layer_of(version, name, client_port, 80, reply=True)
    quote = quote_of(version, vip, client, answered, cut)
    assert sent(world, error(version, ROUTER[version], vip, quote, kind)) == backend
    strange = quote_of(version, vip, ROUTER[version], answered, cut)
    decision, _ = world.decide(error(version, ROUTER[version], vip, strange, kind), HOOK_PREROUTING)
    assert decision.reason == Reason.NO_FLOW


@both
@pytest.mark.parametrize("several", [False, True])
def test_a_stop_resets_the_backend_by_what_the_client_says_and_then_the_client(
    version: int, several: bool
) -> None:
    world = World(direct())
    ends = {"sport": 1000, "dport": 80, "seq": 7, "ack": 9}
    says = ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="PA") / b"hello"
    acknowledges = ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="A")
    backend = sent(world, says)
    world.publish(direct(), stops=dict.fromkeys(ALL, Stops.ENDING))
    assert sent(world, acknowledges) == backend
    decision, result = world.decide(bytes(says), HOOK_PREROUTING, several=several)
    assert (decision.verdict, decision.mark, decision.reason) == (NF_REPEAT, BACKEND + backend, Reason.OK)
    reset = ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="RA", window=0)
    if several:
        reset /= b"hello"
        reset[TCP].window = says[TCP].window
    assert result[: decision.end - START] == bytes(reset)
    world.publish(direct(), stops=dict.fromkeys(ALL, Stops.ENDED))
    for packet in (says, acknowledges):
        decision, _ = world.decide(bytes(packet), HOOK_PREROUTING)
        assert (decision.verdict, decision.mark, decision.reason) == (NF_ACCEPT, REJECTED, Reason.ENDED)
    assert sent(world, ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="R")) == backend


@both
@pytest.mark.parametrize("forgotten", [False, True])
def test_replies_of_connections_that_workers_rewrote_before_still_come_from_the_vip(
    version: int, forgotten: bool
) -> None:
    world = World(web())
    request = ip(version, CLIENT[version], VIP[version]) / TCP(sport=1000, dport=80, flags="PA")
    address = world.backend_of(request)
    world.publish(direct())
    reply = ip(version, address, CLIENT[version]) / TCP(sport=80, dport=1000, flags="PA") / b"more"
    assert world.reply(reply, forgotten) == (Reason.OK, with_addresses(reply, source=VIP[version]))
    assert world.backends["web", address] == sent(world, request)


@both
def test_connections_of_before_are_rewritten_again_after(version: int) -> None:
    world = World(direct())
    request = ip(version, CLIENT[version], VIP[version]) / TCP(sport=1000, dport=80, flags="PA")
    backend = sent(world, request)
    world.publish(web())
    decision, result = world.decide(bytes(request), HOOK_PREROUTING)
    assert decision.mark & VIP_MASK == VIP_MARK
    layer = IP if version == 4 else IPv6
    assert world.backends["web", layer(result).dst] == backend
    refusal = ip(version, layer(result).dst, CLIENT[version]) / TCP(sport=80, dport=1000, flags="R")
    decision, result = world.decide(bytes(refusal), HOOK_POSTROUTING, mark=decision.mark)
    assert layer(result).src == VIP[version]
