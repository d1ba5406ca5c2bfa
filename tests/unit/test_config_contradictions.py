"""What contradicts itself although every value is right, and what does not."""

import time
from typing import Any

import pytest

from loaded_mp.config.draft import Draft
from loaded_mp.config.errors import ConfigError


def service(name: str = "a", vips: Any = ("192.0.2.10",), backends: Any = ("10.0.0.1",), **more: Any) -> Any:
    listed = [{"address": each} if isinstance(each, str) else each for each in backends]
    return {"name": name, "vips": list(vips), "backends": listed, **more}


def found(*services: Any, **more: Any) -> list[tuple[str, str]]:
    try:
        Draft({"services": list(services), **more}).config()
    except ConfigError as error:
        return [(each.key, each.text) for each in error.mistakes]
    return []


@pytest.mark.parametrize(
    "address", ["224.0.0.1", "0.0.0.0", "127.0.0.1", "ff02::1", "::", "::1", "fe80::1%eth0"]
)
def test_addresses_that_are_no_single_machine(address: str) -> None:
    other, vip = ("fd00::9", "2001:db8::9") if ":" in address else ("10.0.0.9", "192.0.2.9")
    assert [key for key, _ in found(service(vips=[address], backends=[other]))] == ["services.vips"]
    assert [key for key, _ in found(service(vips=[vip], backends=[address]))] == ["services.backends.address"]


def test_addresses_with_a_zone_are_of_no_use() -> None:
    scoped, fine = "fe80::1%eth0", "2001:db8::9"
    assert [key for key, _ in found(service(vips=[scoped], backends=[fine]))] == ["services.vips"]
    assert [key for key, _ in found(service(vips=[fine], backends=[scoped]))] == ["services.backends.address"]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ([], [], True),
        ([], ["tcp/80"], False),
        (["tcp/80"], ["tcp/80"], True),
        (["tcp/80"], ["tcp/81"], False),
        (["tcp/80"], ["udp/80"], False),
        (["tcp"], ["tcp/80"], True),
        (["tcp/1-80"], ["tcp/80-90"], True),
        (["tcp/1-79"], ["tcp/80-90"], False),
        (["icmp"], ["udp", "icmp"], True),
        (["nonsense"], ["tcp/80"], False),
    ],
)
def test_services_on_one_vip(one: list[str], other: list[str], overlap: bool) -> None:
    first = service(listen=one)
    second = service("b", ["192.0.2.11", "192.0.2.10/24"], listen=other)
    for services in ((first, second), ({**second, "name": "c"}, first)):
        texts = [text for _, text in found(*services) if "answered by service" in text]
        assert len(texts) == overlap


def test_the_same_twice() -> None:
    assert found(service(), service(vips=["192.0.2.11"])) == [
        ("services.name", "found 'a' twice, expected a name of its own")
    ]
    ((key, text),) = found(service(vips=["192.0.2.10", "192.0.2.10/24"]))
    assert (key, text) == ("services.vips", "found 192.0.2.10 twice, expected it once")
    ((key, text),) = found(
        service(backends=["fd00::1", "10.0.0.1", "fd00:0::1"], vips=["1.1.1.1", "2001:db8::1"])
    )
    assert (key, text) == (
        "services.backends.address",
        "found fd00::1 twice in the service, expected it once (use weight)",
    )
    assert not found(service(), service("b", ["192.0.2.11"]))  # a backend may answer for two services


def test_a_vip_is_no_backend_of_any_service() -> None:
    ((key, text),) = found(service(), service("b", ["10.0.0.1"], ["10.0.0.2"]))
    assert (key, text) == ("services.vips", "10.0.0.1 is a backend too, expected an address of its own")


def test_families_have_both_sides() -> None:
    ((key, text),) = found(service(vips=["192.0.2.10", "2001:db8::10"]))
    assert (key, text) == ("services.vips", "no backend has an IPv6 address, expected one for 2001:db8::10")
    ((key, text),) = found(service(backends=["10.0.0.1", "fd00::1"]))
    assert (key, text) == (
        "services.backends.address",
        "no VIP has an IPv6 address, expected one for fd00::1",
    )
    assert not found(service(vips=["192.0.2.10", "2001:db8::10"], backends=["10.0.0.1", "fd00::1"]))


def test_a_misspelt_address_is_not_called_absent() -> None:
    assert len(found(service(vips=["192.0.2.10", "2001:db8::10"], backends=["10.0.0.1", "fd00::x"]))) == 1
    assert len(found(service(vips=["192.0.2.10", "2001:db8::x"], backends=["10.0.0.1", "fd00::1"]))) == 1


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"first_core": 2, "last_core": 2}, []),
        ({"first_core": 2}, []),
        ({"first_core": 2, "last_core": 1}, ["last_core"]),
        ({"last_core": 1}, ["last_core"]),
        ({"first_queue": 65_535, "workers": 1}, []),
        ({"first_queue": 65_535}, []),
        ({"first_queue": 65_535, "workers": 2}, ["first_queue"]),
    ],
)
def test_cores_and_queues(settings: dict[str, int], keys: list[str]) -> None:
    assert [key for key, _ in found(service(), **settings)] == keys


def test_weights_of_zero_are_allowed_unless_all_are() -> None:
    zero = {"address": "10.0.0.1", "weight": 0}
    assert found(service(backends=[zero]))
    assert not found(service(backends=[zero], all_zero=True))
    assert not found(service(backends=[zero, {"address": "10.0.0.2"}]))


def test_what_is_large_does_not_take_long() -> None:
    """A reload happens between two heartbeats of the supervisor: the time must not grow with the square."""
    count = 5_000
    many = [
        service(f"s{n}", [f"10.{n // 250}.{n % 250}.1"], [f"11.{n // 250}.{n % 250}.1"]) for n in range(count)
    ]
    start = time.process_time()
    assert not found(*many)
    wrong = [{**each, "listen": [each["name"]]} for each in many]
    assert len(found(*wrong)) == count
    assert time.process_time() - start < 5
