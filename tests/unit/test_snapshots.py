"""Snapshots as their readers in the packet path see them."""

from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from building import build, service
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.config.model import Config, Service
from loaded_mp.datapath.lookup import NO_PORT, address_row, service_of, vip_row
from loaded_mp.memory.snapshot import (
    MAX_BACKENDS,
    MAX_SERVICES,
    MAX_SLOTS,
    MAX_VIPS,
    Flag,
    ServiceColumn,
    Snapshot,
)
from loaded_mp.packet.address import address128
from loaded_mp.services import Ids, Part, TooLargeError

TCP, UDP, ICMP, ICMPV6, GRE = 6, 17, 1, 58, 47


def service_at(snapshot: Snapshot, vip: str, protocol: int, port: int) -> int:
    row = vip_row(snapshot, address128(ip_address(vip)))
    return service_of(snapshot, row, protocol, port, 0) if row >= 0 else -1


def slots_of(snapshot: Snapshot, part: Part) -> list[str]:
    at, count = snapshot.services[part.id, [ServiceColumn.SLOTS_AT, ServiceColumn.SLOTS]]
    return [str(part.backends[number].address) for number in snapshot.slots[at : at + count].tolist()]


def test_the_specific_listener_comes_before_the_one_that_catches_all() -> None:
    vips = ["192.0.2.10", "2001:db8::10"]
    backends = {"10.0.0.1": 1, "fd00::1": 1}
    snapshot, parts = build(
        service("all", vips, backends),
        service("tcp", vips, backends, listen=["tcp"]),
        service("web", vips, backends, listen=["tcp/80", "tcp/8000-8099"]),
        service("ping", vips, backends, listen=["icmp"]),
    )
    name = {part.id: (part.service.name, part.family) for part in parts}
    for vip, family, icmp in ((vips[0], 4, ICMP), (vips[1], 6, ICMPV6)):
        assert name[service_at(snapshot, vip, TCP, 80)] == ("web", family)
        assert name[service_at(snapshot, vip, TCP, 8050)] == ("web", family)
        assert name[service_at(snapshot, vip, TCP, 8100)] == ("tcp", family)
        assert name[service_at(snapshot, vip, UDP, 80)] == ("all", family)
        assert name[service_at(snapshot, vip, GRE, 0)] == ("all", family)
        assert name[service_at(snapshot, vip, icmp, 0xFFFF)] == ("ping", family)
        assert name[service_at(snapshot, vip, TCP, NO_PORT)][0] in ("web", "tcp")
    assert name[service_at(snapshot, vips[0], ICMPV6, 1)] == ("all", 4)
    assert service_at(snapshot, "192.0.2.11", TCP, 80) == -1


def test_a_service_without_a_catch_all_answers_nothing_else() -> None:
    snapshot, _ = build(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, listen=["tcp/80"]))
    assert service_at(snapshot, "192.0.2.10", TCP, 80) >= 0
    assert service_at(snapshot, "192.0.2.10", TCP, 81) == -1
    assert service_at(snapshot, "192.0.2.10", UDP, 80) == -1
    assert service_at(snapshot, "192.0.2.10", ICMP, 0) == -1


def test_families_of_a_service_are_apart() -> None:
    snapshot, parts = build(
        service("both", ["192.0.2.10", "2001:db8::10"], {"10.0.0.1": 2, "fd00::1": 1, "10.0.0.2": 1})
    )
    assert [part.family for part in parts] == [4, 6]
    assert slots_of(snapshot, parts[0]) == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert slots_of(snapshot, parts[1]) == ["fd00::1"]
    _, only6 = build(service("six", ["2001:db8::10"], {"10.0.0.1": 1}))
    assert [(part.family, part.backends) for part in only6] == [(6, {})]


def test_flags_and_slots_follow_the_state_of_backends() -> None:
    ids = Ids()
    web = service("web", ["192.0.2.10"], {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0})
    _, parts = build(web, ids=ids)
    first, second, third = parts[0].backends
    snapshot, _ = build(web, ids=ids, down=(first,))
    assert snapshot.backend_flags[[first, second, third]].tolist() == [
        Flag.ANYTHING,
        Flag.ANYTHING | Flag.USABLE,
        Flag.ANYTHING | Flag.USABLE,
    ]
    assert slots_of(snapshot, parts[0]) == ["10.0.0.2"]
    snapshot, _ = build(web, ids=ids, down=(first, second))
    assert slots_of(snapshot, parts[0]) == []


def test_who_serves_more_than_one_vip_is_known() -> None:
    snapshot, parts = build(
        service("a", ["192.0.2.10"], {"10.0.0.1": 1, "10.0.0.2": 1}, listen=["tcp/80"]),
        service("b", ["192.0.2.10"], {"10.0.0.2": 1, "10.0.0.3": 1}, listen=["tcp/443"]),
        service("c", ["192.0.2.11", "192.0.2.12", "2001:db8::1"], {"10.0.0.4": 1, "fd00::4": 1}),
    )
    several = {
        (part.service.name, str(backend.address)): bool(snapshot.backend_flags[number] & Flag.SEVERAL)
        for part in parts
        for number, backend in part.backends.items()
    }
    assert several == {
        ("a", "10.0.0.1"): False,
        ("a", "10.0.0.2"): False,
        ("b", "10.0.0.2"): False,
        ("b", "10.0.0.3"): False,
        ("c", "10.0.0.4"): True,
        ("c", "fd00::4"): False,
    }


def test_nothing_of_an_older_generation_is_left() -> None:
    snapshot, parts = build(service("web", ["192.0.2.10"], {"10.0.0.1": 1}))
    (vip,) = parts[0].vips
    (backend,) = parts[0].backends
    assert np.flatnonzero(snapshot.vip_rows != -1).tolist() == [vip]
    assert np.flatnonzero(snapshot.backend_services != -1).tolist() == [backend]
    assert np.flatnonzero(snapshot.backend_flags).tolist() == [backend]
    assert np.flatnonzero(snapshot.services.any(axis=1)).tolist() == [parts[0].id]
    assert np.count_nonzero(snapshot.vip_index >= 0) == np.count_nonzero(snapshot.address_index >= 0) == 1


def test_ids_stay_until_they_are_released() -> None:
    ids = Ids()
    a = service("a", ["192.0.2.10"], {"10.0.0.1": 1, "10.0.0.2": 1})
    b = service("b", ["192.0.2.11"], {"10.0.0.1": 1})
    _, before = build(a, b, ids=ids)
    _, after = build(b, service("c", ["192.0.2.12"], {"10.0.0.9": 1}), ids=ids)
    assert after[0] == before[1]
    assert after[1].id not in {part.id for part in before}
    assert after[1].vips.keys().isdisjoint({*before[0].vips, *before[1].vips})
    gone = ids.backends.held() - {number for part in after for number in part.backends}
    assert gone == set(before[0].backends)
    for number in gone:
        ids.backends.release(number)
    assert ids.backends.held() == {number for part in after for number in part.backends}
    with pytest.raises(KeyError):
        ids.backends.release(gone.pop())


def test_a_vip_has_the_same_id_in_every_process_and_configuration() -> None:
    """Marks of connections outlive both."""
    web = service("web", ["192.0.2.10", "2001:db8::10"], {"10.0.0.1": 1})
    more = [service(f"more{n}", [f"198.51.100.{n}"], {"10.0.0.1": 1}) for n in range(20)]
    _, alone = build(web)
    _, last = build(*more, web)
    assert [part.vips for part in last if part.service.name == "web"] == [part.vips for part in alone]


def test_a_service_that_only_has_another_name_keeps_its_numbers() -> None:
    ids = Ids()
    backends = {"10.0.0.1": 1, "fd00::1": 1}
    web = service("web", ["192.0.2.10", "2001:db8::10"], backends, listen=["tcp/80"])
    mail = service("mail", ["192.0.2.10"], backends, listen=["tcp/25"])
    before = ids.expand(Config(services=(web, mail)))
    renamed = web.model_copy(update={"name": "site"})
    after = ids.expand(Config(services=(renamed, mail)), before)
    assert [(part.id, part.backends) for part in after.parts] == [
        (part.id, part.backends) for part in before.parts
    ]
    assert ids.expand(before.config, after).parts == before.parts
    moved = service("post", ["192.0.2.11"], backends, listen=["tcp/25"])
    other = ids.expand(Config(services=(web, moved)), before)
    assert other.parts[-1].id not in {part.id for part in before.parts}


def many(count: int, **more: Any) -> list[Service]:
    return [
        service(f"s{i}", [f"192.0.{i // 250}.{i % 250}"], {"10.0.0.1": 1, "10.0.0.2": 1}, **more)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("services", "words"),
    [
        (many(MAX_SERVICES + 1), "services"),
        (
            [service("s", [f"10.{i // 250}.{i % 250}.1" for i in range(MAX_VIPS + 1)], {"10.0.0.1": 1})],
            "VIPs",
        ),
        (
            [
                service(
                    "s",
                    ["192.0.2.1"],
                    {f"10.{i // 250}.{i % 250}.1": 1 for i in range(MAX_BACKENDS + 1)},
                )
            ],
            "backends",
        ),
        (many(1000, listen=[f"tcp/{port}" for port in range(1, 11)]), "listeners"),
        (
            [
                service(f"s{i}", [f"192.0.2.{i}"], {"10.0.0.1": 65_535, "10.0.0.2": 65_534})
                for i in range(MAX_SLOTS // 65_536 + 1)
            ],
            "slots",
        ),
    ],
)
def test_what_does_not_fit_is_said_and_changes_nothing(services: list[Service], words: str) -> None:
    ids = Ids()
    ids.expand(Config(services=tuple(many(1))))
    with pytest.raises(TooLargeError, match=words):
        ids.expand(Config(services=tuple(services)))
    assert (len(ids.services.held()), len(ids.vips.held()), len(ids.backends.held())) == (1, 1, 2)


addresses4 = st.integers(1, 40).map(lambda i: f"10.0.0.{i}")
addresses6 = st.integers(1, 40).map(lambda i: f"fd00::{i:x}:0:0:{i:x}")
configurations = st.lists(
    st.tuples(
        st.lists(st.one_of(addresses4, addresses6), min_size=1, max_size=5, unique=True),
        st.dictionaries(st.one_of(addresses4, addresses6), st.integers(0, 5), min_size=1, max_size=6),
        st.sampled_from(["rr", "wrr"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(configuration=configurations)
def test_everything_can_be_looked_up(configuration: list[tuple[list[str], dict[str, int], str]]) -> None:
    services = [
        service(f"s{i}", vips, backends, scheduler=scheduler, listen=[f"tcp/{i + 1}"], tcp_idle_s=i + 1)
        for i, (vips, backends, scheduler) in enumerate(configuration)
    ]
    snapshot, parts = build(*services)
    for part in parts:
        port = int(part.service.name[1:]) + 1
        assert snapshot.services[part.id, ServiceColumn.TCP_IDLE_S] == port
        for number, vip in part.vips.items():
            row = vip_row(snapshot, address128(vip))
            assert snapshot.vip_rows[number] == row
            assert snapshot.vip_services[number] == part.id
            assert snapshot.vip_bytes[number].tobytes()[: len(vip.packed)] == vip.packed
            assert service_of(snapshot, row, TCP, port, 0) == part.id
        for number, backend in part.backends.items():
            row = address_row(snapshot, address128(backend.address.ip))
            first, count = snapshot.address_members[row]
            assert number in snapshot.members[first : first + count]
            assert snapshot.backend_services[number] == part.id
            assert snapshot.backend_vips[number] in part.vips
            packed = backend.address.ip.packed
            assert snapshot.backend_bytes[number].tobytes()[: len(packed)] == packed
        expected = {str(b.address) for b in part.backends.values() if b.weight}
        assert set(slots_of(snapshot, part)) == expected
