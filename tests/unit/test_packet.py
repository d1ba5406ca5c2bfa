"""The packet core against scapy, which computes every checksum anew, and against arbitrary bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)

from loaded_mp.compiled import Bytes
from loaded_mp.packet import header as h
from loaded_mp.packet.address import destination_at, source_at
from loaded_mp.packet.checksum import read16, sum_words
from loaded_mp.packet.header import parse
from loaded_mp.packet.reasons import Reason
from loaded_mp.packet.rewrite import (
    complete_checksum,
    set_destination,
    set_quoted_destination,
    set_quoted_source,
    set_source,
)

BACKEND = {4: "10.0.0.1", 6: "fd00::1"}
VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
CLIENT = {4: "198.51.100.7", 6: "2001:db8:c::7"}


def address(text: str) -> Bytes:
    packed = (IPv6(dst=text) if ":" in text else IP(dst=text)).build()
    return np.frombuffer(packed[24:40] if ":" in text else packed[16:20], dtype=np.uint8)


def buffer(data: bytes) -> Bytes:
    """The bytes between two guards, in memory aligned as the kernel's are."""
    array = np.full(8 + len(data) + 8, 0xA5, dtype=np.uint8)
    array[8 : 8 + len(data)] = np.frombuffer(data, dtype=np.uint8)
    return array


def network(version: int, **fields: str) -> Any:
    return IP(**fields) if version == 4 else IPv6(**fields)


payloads = st.binary(max_size=1500)
ports = st.integers(0, 65535)
addresses4 = st.binary(min_size=4, max_size=4)
addresses6 = st.binary(min_size=16, max_size=16)


def upper_layers(version: int) -> st.SearchStrategy[Any]:
    echo = st.builds(
        lambda i, p: ICMP(type=8, id=i) / p if version == 4 else ICMPv6EchoRequest(id=i, data=p),
        ports,
        payloads,
    )
    tcp = st.builds(lambda s, d, p: TCP(sport=s, dport=d, flags="A") / p, ports, ports, payloads)
    udp = st.builds(lambda s, d, p: UDP(sport=s, dport=d) / p, ports, ports, payloads)
    return st.one_of(tcp, udp, echo)


def packets(version: int) -> st.SearchStrategy[bytes]:
    if version == 4:
        options = st.sampled_from([[], [IPOption_NOP()], [IPOption_Router_Alert()]])
        start: st.SearchStrategy[Any] = st.builds(lambda o: IP(src=CLIENT[4], dst=VIP[4], options=o), options)
    else:
        extensions: list[Callable[[], Any]] = [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]
        start = st.builds(
            lambda e: IPv6(src=CLIENT[6], dst=VIP[6]) / e() if e else IPv6(src=CLIENT[6], dst=VIP[6]),
            st.sampled_from([None, *extensions]),
        )
    return st.builds(lambda a, b: bytes(a / b), start, upper_layers(version))


def rebuilt(data: bytes, **fields: str | int) -> bytes:
    """The packet with other addresses and ports, and every checksum computed anew by scapy."""
    packet = (IP if data[0] >> 4 == 4 else IPv6)(data)
    layer: Any = packet
    while layer:
        for key, value in fields.items():
            if key in layer.fields:
                setattr(layer, key, value)
        layer = layer.payload
    layer = packet
    while layer:
        for checksum in ("chksum", "cksum"):
            if checksum in layer.fields:
                delattr(layer, checksum)
        layer = layer.payload
    return bytes(packet)


@pytest.mark.parametrize("version", [4, 6])
@settings(deadline=None)
@given(data=st.data())
def test_incremental_equals_full_checksum(version: int, data: st.DataObject) -> None:
    original = data.draw(packets(version))
    packet = buffer(original)
    header = parse(packet, 8, 8 + len(original), False)
    assert header.reason == Reason.OK
    there, back = data.draw(ports), data.draw(ports)
    set_destination(packet, header, address(BACKEND[version]), there)
    assert packet[8:-8].tobytes() == rebuilt(original, dport=there, dst=BACKEND[version])
    set_source(packet, header, address(VIP[version]), back)
    wanted = rebuilt(original, dport=there, dst=BACKEND[version], sport=back, src=VIP[version])
    assert packet[8:-8].tobytes() == wanted


@pytest.mark.parametrize("version", [4, 6])
@settings(deadline=None)
@given(data=st.data())
def test_there_and_back_is_the_original(version: int, data: st.DataObject) -> None:
    original = data.draw(packets(version))
    size = addresses4 if version == 4 else addresses6
    other = np.frombuffer(data.draw(size), dtype=np.uint8)
    packet = buffer(original)
    header = parse(packet, 8, 8 + len(original), False)
    before = read16(packet, header.upper + 2)
    set_destination(packet, header, other, data.draw(ports))
    set_destination(packet, header, address(VIP[version]), before)
    assert packet.tobytes() == buffer(original).tobytes()


@pytest.mark.parametrize("version", [4, 6])
@settings(deadline=None)
@given(data=st.data())
def test_completed_checksum_is_the_full_one(version: int, data: st.DataObject) -> None:
    original = data.draw(packets(version))
    packet = buffer(original)
    header = parse(packet, 8, 8 + len(original), False)
    if header.kind == h.KIND_PORTS:
        packet[header.checksum : header.checksum + 2] = 0x5A
    complete_checksum(packet, header)
    assert packet.tobytes() == buffer(original).tobytes()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_wide_sum_equals_slow_sum(data: bytes) -> None:
    slow = sum(b << 8 if i % 2 == 0 else b for i, b in enumerate(data))
    fast = sum_words(buffer(data), 8, 8 + len(data))
    assert fast % 0xFFFF == slow % 0xFFFF
    assert (fast == 0) == (slow == 0)


@settings(deadline=None, max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=120),
        st.builds(
            lambda a, b: bytes([a]) + b, st.sampled_from([0x45, 0x46, 0x4F, 0x60]), st.binary(max_size=120)
        ),
    ),
    st.booleans(),
)
def test_no_bytes_make_the_parser_leave_its_buffer(data: bytes, quoted: bool) -> None:
    """The buffer ends where the packet ends: interpreted, a read past it would raise IndexError."""
    packet = np.frombuffer(data, dtype=np.uint8)
    header = parse(packet, 0, len(data), quoted)
    assert header.reason in Reason
    if header.reason == Reason.OK:
        assert 20 <= header.upper <= header.end <= len(data)
        assert header.checksum == 0 or header.upper < header.checksum <= header.end - 2


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([4, 6]), st.data())
def test_what_follows_does_not_change_the_verdict(version: int, data: st.DataObject) -> None:
    """The same packet before zeros and before ones: nothing behind its end was read."""
    whole = data.draw(packets(version))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    headers = []
    for filler in (0x00, 0xFF):
        packet = np.full(len(cut) + 64, filler, dtype=np.uint8)
        packet[: len(cut)] = np.frombuffer(cut, dtype=np.uint8)
        headers.append(parse(packet, 0, len(cut), False))
    assert headers[0] == headers[1]
    assert headers[0].reason != Reason.OK or len(cut) == len(whole)


def parsed(layers: Any, quoted: bool = False) -> h.Header:
    data = layers if isinstance(layers, bytes) else bytes(layers)
    return parse(buffer(data), 8, 8 + len(data), quoted)


def test_each_reason() -> None:
    udp = bytes(IP(src=CLIENT[4], dst=VIP[4]) / UDP() / (b"x" * 20))
    assert parsed(b"\x15" + bytes(30)).reason == Reason.NOT_IP
    assert parsed(b"").reason == Reason.TOO_SHORT
    assert parsed(udp[:19]).reason == Reason.TOO_SHORT
    assert parsed(bytes(IPv6())[:39]).reason == Reason.TOO_SHORT
    assert parsed(b"\x44" + udp[1:]).reason == Reason.BAD_HEADER_LENGTH
    assert parsed(udp[:-1]).reason == Reason.TRUNCATED
    assert parsed(bytes(IPv6(plen=8, nh=17))).reason == Reason.TRUNCATED
    assert parsed(udp[:25] + b"\xff" + udp[26:]).reason == Reason.BAD_UPPER_LENGTH
    assert parsed(IP(dst=VIP[4]) / TCP(dataofs=4)).reason == Reason.BAD_UPPER_LENGTH
    routed = IP(dst=VIP[4], options=[b"\x83\x07\x04\x01\x02\x03\x04\x00"]) / UDP()
    assert parsed(routed).reason == Reason.SOURCE_ROUTED
    assert (
        parsed(bytes(IPv6(nh=43, plen=8)) + bytes([17, 0, 0, 1, 0, 0, 0, 0])).reason == Reason.SOURCE_ROUTED
    )
    assert parsed(IPv6(nh=135) / bytes(8)).reason == Reason.UNKNOWN_EXTENSION
    chain = IPv6(dst=VIP[6])
    for _ in range(h.MAX_EXTENSIONS + 1):
        chain = chain / IPv6ExtHdrDestOpt()
    assert parsed(chain / UDP()).reason == Reason.TOO_MANY_EXTENSIONS
    assert parsed(IPv6(nh=89) / bytes(24)).reason == Reason.CHECKSUM_COVERS_ADDRESSES


def test_kinds() -> None:
    assert parsed(IP(proto=50) / bytes(24)).kind == h.KIND_ADDRESS
    assert parsed(IP(proto=132) / bytes(24)).kind == h.KIND_PORTS
    assert parsed(IP(proto=132) / bytes(11)).reason == Reason.TOO_SHORT
    assert parsed(IP(frag=5) / bytes(24)).kind == h.KIND_FRAGMENT
    assert parsed(IPv6() / IPv6ExtHdrFragment(offset=5, nh=17) / bytes(16)).kind == h.KIND_FRAGMENT
    assert parsed(IPv6() / ICMPv6ND_NS()).kind == h.KIND_LINK
    assert parsed(IP() / ICMP(type=5) / bytes(8)).kind == h.KIND_LINK
    assert parsed(IP() / ICMP(type=3) / bytes(8)).kind == h.KIND_ERROR
    authenticated = parsed(IPv6(nh=51) / (bytes([17, 4]) + bytes(22) + bytes(UDP(sport=7, len=8))))
    assert (authenticated.kind, authenticated.protocol) == (h.KIND_PORTS, h.UDP)


def test_udp_zero_checksum_stays_zero() -> None:
    data = bytes(IP(src=CLIENT[4], dst=VIP[4]) / UDP(chksum=0) / b"data")
    packet = buffer(data)
    header = parse(packet, 8, 8 + len(data), False)
    set_destination(packet, header, address(BACKEND[4]), 8053)
    assert packet[header.checksum] == packet[header.checksum + 1] == 0


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_computed_as_zero_is_sent_as_ones(version: int) -> None:
    """Choose the payload so that the rewritten datagram's checksum computes to zero (RFC 768)."""
    first = network(version, src=CLIENT[version], dst=BACKEND[version]) / UDP(sport=1, dport=9) / b"\x00\x00"
    checksum = (IP if version == 4 else IPv6)(bytes(first))[UDP].chksum
    payload = checksum.to_bytes(2, "big")
    data = bytes(network(version, src=CLIENT[version], dst=VIP[version]) / UDP(sport=1, dport=2) / payload)
    packet = buffer(data)
    header = parse(packet, 8, 8 + len(data), False)
    set_destination(packet, header, address(BACKEND[version]), 9)
    assert packet[header.checksum : header.checksum + 2].tobytes() == b"\xff\xff"


@pytest.mark.parametrize("quoted_bytes", [8, 20, 200])
@pytest.mark.parametrize("version", [4, 6])
def test_icmp_error_quotes_are_rewritten(version: int, quoted_bytes: int) -> None:
    """An error about VIP->client becomes one about backend->client, with every checksum right."""
    inner = bytes(
        network(version, src=VIP[version], dst=CLIENT[version]) / TCP(sport=80, dport=5) / (b"y" * 300)
    )
    quote = inner[: (20 if version == 4 else 40) + quoted_bytes]
    kind = ICMP(type=3, code=4) if version == 4 else ICMPv6DestUnreach()
    error = network(version, src="198.51.100.1" if version == 4 else "2001:db8:c::1", dst=VIP[version]) / kind
    data = bytes(error / quote)
    packet = buffer(data)
    outer = parse(packet, 8, 8 + len(data), False)
    assert outer.kind == h.KIND_ERROR
    start = outer.upper + 8
    inside = parse(packet, start, outer.end, True)
    assert (inside.reason, inside.kind) == (Reason.OK, h.KIND_PORTS)
    set_quoted_source(packet, outer, inside, address(BACKEND[version]), 8080)
    set_destination(packet, outer, address(BACKEND[version]), 8080)

    wanted_inner = rebuilt(inner, src=BACKEND[version], sport=8080)[: len(quote)]
    wanted = bytes(
        network(version, src=error.src, dst=BACKEND[version])
        / (ICMP(type=3, code=4) if version == 4 else ICMPv6DestUnreach())
        / wanted_inner
    )
    assert packet[8:-8].tobytes() == wanted
    set_quoted_source(packet, outer, inside, address(VIP[version]), 80)
    set_quoted_destination(packet, outer, inside, address(BACKEND[version]), 8080)
    set_quoted_destination(packet, outer, inside, address(CLIENT[version]), 5)
    set_destination(packet, outer, address(VIP[version]), 0)
    assert packet[8:-8].tobytes() == data


def test_address_offsets() -> None:
    data = bytes(IPv6(src=CLIENT[6], dst=VIP[6]))
    assert data[source_at(6, 0) : source_at(6, 0) + 16] == address(CLIENT[6]).tobytes()
    assert data[destination_at(6, 0) : destination_at(6, 0) + 16] == address(VIP[6]).tobytes()
