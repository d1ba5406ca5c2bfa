"""What contradicts itself although every value is right, and what does not."""

import time
from typing import Any

import pytest

from loaded_mp.config.draft import Draft
from loaded_mp.config.errors import ConfigError

pytestmark = pytest.mark.uncompiled


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


@pytest.mark.parametrize(
    ("listen", "backends", "expected"),
    [
        (["tcp/80"], ["10.0.0.1:8080", "10.0.0.1:8081", "10.0.0.1", "10.0.0.2:8080"], ""),
        (["tcp/53", "udp/53", "icmp"], ["10.0.0.1:5353"], ""),
        (["tcp/5000-5010"], ["10.0.0.1:8000", "10.0.0.1:8011", "10.0.0.1"], ""),
        (["tcp/80"], ["10.0.0.1:8080", "10.0.0.1:8080"], "found 10.0.0.1:8080 twice in the service"),
        (["tcp/80"], ["10.0.0.1", "10.0.0.1:80"], "found 10.0.0.1:80 twice in the service"),
        (
            ["tcp/5000-5010"],
            ["10.0.0.1:8010", "10.0.0.1:8000"],
            "found 10.0.0.1:8000, which has ports of another",
        ),
        (["tcp/5000-5010"], ["10.0.0.1:65526"], "found 10.0.0.1:65526, expected as many ports from 65526 on"),
        (["tcp/80", "tcp/443"], ["10.0.0.1:8080"], "found the port 8080, expected listen to name one port"),
        (["tcp"], ["10.0.0.1:8080"], "found the port 8080, expected listen to name one port or range"),
        (
            [],
            ["10.0.0.1:8080"],
            "found the port 8080, expected listen to name one port or range of tcp or udp",
        ),
    ],
)
def test_ports_of_backends_fit_what_is_listened_to(
    listen: list[str], backends: list[str], expected: str
) -> None:
    texts = [text for _, text in found(service(backends=backends, listen=listen))]
    assert [text[: len(expected)] for text in texts] == [expected] * bool(expected)


def test_many_backends_on_one_machine_take_no_time() -> None:
    backends = [f"10.0.0.1:{port}" for port in range(1, 8_001)]
    begun_s = time.monotonic()
    assert not found(service(backends=backends, listen=["tcp/80"]))
    assert time.monotonic() - begun_s < 20


@pytest.mark.parametrize(
    ("listen", "check", "lacks"),
    [
        ([], {}, True),
        (["tcp/80", "tcp/443"], {"type": "udp", "send": "x"}, True),
        (["tcp/80"], {}, False),
        (["tcp/80-90"], {}, False),
        ([], {"port": 80}, False),
        ([], {"type": "http"}, False),
        ([], {"type": "icmp"}, False),
    ],
)
def test_a_check_has_a_port(listen: list[str], check: dict[str, Any], lacks: bool) -> None:
    for checks in (check, [check]):
        mistakes = found(service(listen=listen, checks=checks))
        assert [text.partition(",")[0] for _, text in mistakes] == ["missing"] * lacks


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["192.0.2.0/28"], ["192.0.2.16/28"], ""),
        (["192.0.2.0/28"], ["192.0.2.15"], "192.0.2.15 is answered by service 'a' already"),
        (["192.0.2.15"], ["192.0.2.0/28"], "192.0.2.15 is answered by service 'a' already"),
        (["192.0.2.1/28"], ["192.0.2.2/28"], ""),
        (["192.0.2.0/28", "192.0.2.3"], ["192.0.2.16"], "found 192.0.2.3 twice"),
        (["10.0.0.0/30"], ["192.0.2.1"], "10.0.0.1 is a backend too"),
        (["192.0.0.0/16"], ["192.0.2.1"], "found '192.0.0.0/16', a network of 65,536 addresses"),
    ],
)
def test_networks_as_vips(one: list[str], other: list[str], expected: str) -> None:
    texts = [text for _, text in found(service("a", one), service("b", other, ["10.0.0.9"]))]
    assert [text[: len(expected)] for text in texts] == [expected] * bool(expected)
