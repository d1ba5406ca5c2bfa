"""Tunnels: what is put into other packets, and errors about these, with scapy as the judge."""

from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw
from test_balance import both, echo, error, exchanges, gre, ip, quote_of
from world import ALL, BACKENDS, CLIENT, ROUTER, VIP, World, web

from loaded_mp.config.contradictions import contradictions
from loaded_mp.config.model import Service
from loaded_mp.datapath.messages import HOOK_LOCAL_OUT, HOOK_PREROUTING, NF_ACCEPT, NF_DROP, NF_REPEAT
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import REJECTED, TUNNEL
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.state import Stops

kinds = pytest.mark.parametrize("kind", ["ipip", "gue"])
SOURCES = {4: ip_network("192.0.0.0/29"), 6: ip_network("100::/64")}


def tunnelling(kind: str = "ipip", **more: Any) -> Service:
    return web(forwarding="tunnel", tunnel={"kind": kind}, **more)


def put(world: World, packet: Any) -> bytes:
    """The packet that carries this one to a backend."""
    decision, result = world.decide(bytes(packet), HOOK_PREROUTING)
    assert (decision.verdict, decision.mark, decision.reason) == (NF_REPEAT, TUNNEL, Reason.OK)
    return result


def taken_out(version: int, kind: str, outer: bytes) -> tuple[Any, bytes]:
    """The header of the packet that carries another, checked, and that one."""
    packet = (IP if version == 4 else IPv6)(outer)
    anew = packet.copy()
    for field in ("len", "chksum") if version == 4 else ("plen",):
        delattr(anew, field)
    if kind == "gue":
        assert (packet[UDP].dport, packet[UDP].chksum) == (6080, 0)
        assert packet[UDP].sport >= 0xC000
        assert packet[UDP].len == len(packet[UDP])
        inner = bytes(packet[UDP].payload)
    else:
        assert packet.proto == 4 if version == 4 else packet.nh == 41
        inner = bytes(packet.payload)
    assert bytes(anew) == outer
    assert ip_address(packet.src) in SOURCES[version]
    assert packet.dst in BACKENDS[version]
    return packet, inner


@both
@kinds
@settings(deadline=None, max_examples=40)
@given(data=st.data(), class_and_ecn=st.integers(0, 255), hops=st.integers(0, 255), whole=st.booleans())
def test_a_backend_takes_out_what_the_client_sent(
    version: int, kind: str, data: st.DataObject, class_and_ecn: int, hops: int, whole: bool
) -> None:
    world = World(tunnelling(kind))
    more: dict[str, Any] = {"tos": class_and_ecn, "ttl": hops, "flags": "DF" if whole else 0, "id": 7}
    if version == 6:
        more = {"tc": class_and_ecn, "hlim": hops, "fl": 5}
    asked = data.draw(exchanges(version))[0]
    request = gre(version, ip(version, CLIENT[version], VIP[version], **more) / asked)
    outer, inner = taken_out(version, kind, put(world, request))
    (outer2, _) = taken_out(version, kind, put(world, request))
    assert bytes(outer) == bytes(outer2)
    expected = request.copy()
    expected.fields["ttl" if version == 4 else "hlim"] = max(hops - 1, 0)
    assert inner == bytes(expected)
    if version == 4:
        assert (outer.tos, outer.ttl, outer.flags.DF) == (class_and_ecn, 64, whole)
    else:
        assert (outer.tc, outer.hlim) == (class_and_ecn, 64)
    backend = world.backends["web", outer.dst]
    assert world.memory.backends[0, backend, BackendCounter.TO_BACKEND_BYTES] == 2 * len(bytes(request))


@both
@kinds
def test_connections_look_different_from_outside(version: int, kind: str) -> None:
    world = World(tunnelling(kind))
    seen: Counter[tuple[Any, ...]] = Counter()
    backends = set()
    for port in range(1, 257):
        request = ip(version, CLIENT[version], VIP[version]) / TCP(sport=port, dport=80)
        outer, _ = taken_out(version, kind, put(world, request))
        backends.add(outer.dst)
        seen[outer.src, outer[UDP].sport if kind == "gue" else 0] += 1
    assert len(backends) == 1
    assert len({source for source, _ in seen}) == (8 if version == 4 else 256)
    assert len(seen) > (250 if kind == "gue" or version == 6 else 7)


@both
@kinds
def test_an_error_about_a_tunnel_becomes_one_for_the_client(version: int, kind: str) -> None:
    world = World(tunnelling(kind, listen=["tcp/80"]))
    layer = TCP(sport=1000, dport=80, seq=7) / bytes(range(250))
    request = ip(version, CLIENT[version], VIP[version], **({"flags": "DF"} if version == 4 else {})) / layer
    outer, inner = taken_out(version, kind, put(world, request))
    added = len(bytes(outer)) - len(inner)
    for about, hook, room in (("mtu", HOOK_LOCAL_OUT, 8), ("other", HOOK_PREROUTING, 40)):
        reached: Any = ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach(code=3)
        told = reached.copy()
        if about == "mtu" and version == 4:
            reached, told = (ICMP(type=3, code=4, nexthopmtu=n) for n in (1500, 1500 - added))
        elif about == "mtu":
            reached, told = (ICMPv6PacketTooBig(mtu=n) for n in (1500, 1500 - added))
        quote = Raw(bytes(outer)[: added + (20 if version == 4 else 40) + room])
        sent = ip(version, ROUTER[version], outer.src) / reached / quote
        expected = ip(version, ROUTER[version], CLIENT[version]) / told / Raw(bytes(quote)[added:])
        decision, result = world.decide(bytes(sent), hook, mark=TUNNEL)
        assert (decision.verdict, decision.reason, result) == (NF_ACCEPT, Reason.OK, bytes(expected))
    strange = ip(version, ROUTER[version], outer.src) / reached / Raw(bytes(request))
    decision, _ = world.decide(bytes(strange), HOOK_LOCAL_OUT, mark=TUNNEL)
    assert (decision.verdict, decision.changed, decision.reason) == (NF_ACCEPT, False, Reason.NO_FLOW)


@both
def test_noise_about_tunnels_changes_nothing(version: int) -> None:
    world = World(tunnelling("gue"))
    outer = put(world, ip(version, CLIENT[version], VIP[version]) / UDP(sport=1, dport=2) / bytes(40))
    for length in range(len(outer)):
        source = str(next(iter(SOURCES[version])))
        data = error(version, ROUTER[version], source, outer[: length // 4 * 4], "mtu")
        decision, _ = world.decide(data, HOOK_LOCAL_OUT, mark=TUNNEL)
        assert decision.verdict in (NF_ACCEPT, NF_DROP)


@both
def test_errors_to_the_vip_are_carried_to_the_backend_of_their_client(version: int) -> None:
    world = World(tunnelling())
    outer, _ = taken_out(version, "ipip", put(world, ip(version, CLIENT[version], VIP[version]) / UDP()))
    quote = quote_of(version, VIP[version], CLIENT[version], UDP() / b"answered", 8)
    sent = error(version, ROUTER[version], VIP[version], quote, "mtu")
    other, inner = taken_out(version, "ipip", put(world, sent))
    assert other.dst == outer.dst
    assert inner[20 if version == 4 else 40 :] == sent[20 if version == 4 else 40 :]


@both
@kinds
def test_a_reset_is_carried_too(version: int, kind: str) -> None:
    world = World(tunnelling(kind))
    ends = {"sport": 1000, "dport": 80, "seq": 7, "ack": 9}
    says = ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="PA") / b"hello"
    put(world, says)
    world.publish(tunnelling(kind), stops=dict.fromkeys(ALL, Stops.ENDING))
    _, inner = taken_out(version, kind, put(world, says))
    reset = ip(version, CLIENT[version], VIP[version]) / TCP(**ends, flags="RA", window=0)
    reset.fields["ttl" if version == 4 else "hlim"] = 63
    assert inner == bytes(reset)
    world.publish(tunnelling(kind), stops=dict.fromkeys(ALL, Stops.ENDED))
    decision, _ = world.decide(bytes(says), HOOK_PREROUTING)
    assert (decision.verdict, decision.mark, decision.reason) == (NF_ACCEPT, REJECTED, Reason.ENDED)


@both
def test_what_a_tunnel_cannot_carry_is_dropped_and_counted(version: int) -> None:
    world = World(tunnelling())
    request = bytes(ip(version, CLIENT[version], VIP[version]) / UDP() / bytes(100))
    for more, reason in (({"several": True}, Reason.UNCUT), ({"cut": True}, Reason.CUT)):
        decision, result = world.decide(request, HOOK_PREROUTING, **more)
        assert (decision.verdict, decision.reason) == (NF_DROP, reason)
        assert result == request
    longest = bytes(ip(version, CLIENT[version], VIP[version]) / UDP() / bytes(65_500))
    assert world.decide(longest, HOOK_PREROUTING)[0].reason == Reason.CUT


@both
def test_a_checksum_that_is_left_to_the_card_is_finished(version: int) -> None:
    world = World(tunnelling())
    request = ip(version, CLIENT[version], VIP[version]) / TCP(dport=80, chksum=1) / b"x"
    decision, result = world.decide(bytes(request), HOOK_PREROUTING, ready=False)
    inner = taken_out(version, "ipip", result)[1]
    del request[TCP].chksum
    assert decision.reason == Reason.OK
    assert inner[-21:] == bytes(request)[-21:]
    unknown = ip(version, CLIENT[version], VIP[version]) / echo(version, 1)
    decision, _ = world.decide(bytes(unknown), HOOK_PREROUTING, ready=False)
    assert decision.reason == Reason.CHECKSUM_UNFINISHED


def test_settings_of_tunnels_are_for_tunnels_and_have_a_source_of_each_family() -> None:
    mine = web(forwarding="tunnel", tunnel={"sources": ["10.9.0.0/16"]})
    assert mine.tunnel.sources == (ip_network("10.9.0.0/16"), ip_network("100::/64"))
    for wrong, words in (
        ({"forwarding": "dr", "tunnel": {"kind": "gue"}}, "expected .tunnel"),
        ({"forwarding": "tunnel", "tunnel": {"sources": ["10.0.0.0/8", "10.9.0.0/16"]}}, "several networks"),
        ({"forwarding": "tunnel", "tunnel": {"sources": ["fd00::/48"]}}, "smaller network"),
    ):
        with pytest.raises(ValidationError, match=words):
            web(**wrong)


@pytest.mark.parametrize("forwarding", ["dr", "tunnel"])
def test_where_packets_stay_as_they_are_backends_have_no_ports_of_their_own(forwarding: str) -> None:
    data = {"name": "web", "forwarding": forwarding, "vips": [VIP[4]], "listen": ["tcp/80"]}
    for address, wrong in (("10.0.0.1", False), ("10.0.0.1:80", False), ("10.0.0.1:8080", True)):
        found = [
            text for _, text in contradictions({"services": [{**data, "backends": [{"address": address}]}]})
        ]
        expected = f'found the port 8080, expected none: with forwarding = "{forwarding}" a backend answers'
        expected += " on the port that the client asks for"
        assert found == ([expected] if wrong else [])
