"""What is added and removed while the daemon runs, beside what the configuration says."""

import pytest
from building import service

from loaded_mp.config.model import Backend, Config
from loaded_mp.fields import Endpoint
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.services import Ids
from loaded_mp.supervisor.affinities import Affinities
from loaded_mp.supervisor.handover import read_state, write_state
from loaded_mp.supervisor.overlay import MisfitError, Overlay, with_backend, without_backend

WEB = service("web", ["192.0.2.10"], {"10.0.0.1": 1, "10.0.0.2": 1})
BOTH = service("both", ["192.0.2.20", "2001:db8::20"], {"10.0.0.1": 1, "10.0.0.3": 1, "fd00::1": 1})
CONFIG = Config(services=(WEB, BOTH))


def backend(address: str, weight: int = 1) -> Backend:
    return Backend.model_validate({"address": address, "weight": weight})


def at(address: str) -> Endpoint:
    return Endpoint.read(address)


def addresses(config: Config, name: str = "web") -> list[str]:
    return [
        str(each.address) for service in config.services if service.name == name for each in service.backends
    ]


def test_what_is_added_and_removed_lies_over_the_configuration() -> None:
    overlay = Overlay().adding("web", backend("10.0.0.9", 3)).removing("web", at("10.0.0.1"))
    assert addresses(overlay.over(CONFIG)) == ["10.0.0.2", "10.0.0.9"]
    assert addresses(overlay.over(CONFIG), "both") == addresses(CONFIG, "both")
    assert overlay.over(CONFIG).services[0].backends[1].weight == 3


def test_what_was_added_is_removed_without_a_trace() -> None:
    assert Overlay().adding("web", backend("10.0.0.9")).removing("web", at("10.0.0.9")) == Overlay()


def test_what_was_removed_is_added_as_it_is_wanted_now() -> None:
    overlay = Overlay().removing("web", at("10.0.0.1")).adding("web", backend("10.0.0.1", 7))
    assert [each.weight for each in overlay.over(CONFIG).services[0].backends] == [1, 7]
    assert addresses(overlay.removing("web", at("10.0.0.1")).over(CONFIG)) == ["10.0.0.2"]


def test_a_configuration_that_is_read_brings_back_what_was_removed_and_keeps_what_was_added() -> None:
    overlay = Overlay().adding("web", backend("10.0.0.9", 3)).removing("web", at("10.0.0.1"))
    assert addresses(overlay.beside(CONFIG).over(CONFIG)) == ["10.0.0.1", "10.0.0.2", "10.0.0.9"]
    listed = Config(services=(service("web", ["192.0.2.10"], {"10.0.0.9": 5}),))
    assert overlay.beside(listed) == Overlay()
    assert overlay.beside(Config(services=(BOTH,))) == Overlay()


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (Config(services=(service("web", ["10.0.0.9"], {"10.0.0.5": 1}),)), ["10.0.0.5"]),  # a VIP now
        (Config(services=(service("web", ["2001:db8::10"], {"fd00::1": 1}),)), ["fd00::1"]),  # other family
    ],
)
def test_what_does_not_fit_the_configuration_any_more_is_passed_over(config: Config, kept: list[str]) -> None:
    assert addresses(Overlay().adding("web", backend("10.0.0.9")).over(config)) == kept


def test_a_service_keeps_its_last_backend() -> None:
    alone = Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}),))
    assert addresses(Overlay().removing("web", at("10.0.0.1")).over(alone)) == ["10.0.0.1"]
    with pytest.raises(MisfitError, match="the last IPv6 backend of service 'both'"):
        without_backend(CONFIG, "both", at("fd00::1"))


@pytest.mark.parametrize(
    ("name", "address", "fault"),
    [
        ("nobody", "10.0.0.9", "there is no service 'nobody'; there are: web, both"),
        ("web", "10.0.0.1", "found 10.0.0.1 twice in the service"),
        ("web", "fd00::9", "no VIP has an IPv6 address"),
        ("web", "192.0.2.20", "is a backend too"),
        ("web", "127.0.0.1", "loopback"),
    ],
)
def test_what_cannot_be_added_is_refused_in_words(name: str, address: str, fault: str) -> None:
    with pytest.raises(MisfitError, match=fault):
        with_backend(CONFIG, name, backend(address))


def test_a_port_that_the_way_of_forwarding_leaves_as_it_is_cannot_be_added() -> None:
    direct = Config(
        services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, listen=["tcp/80"], forwarding="dr"),)
    )
    with pytest.raises(MisfitError, match='expected none: with forwarding = "dr"'):
        with_backend(direct, "web", backend("10.0.0.2:8080"))


def test_who_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(MisfitError, match=r"service 'web' has no backend 10\.0\.0\.3"):
        without_backend(CONFIG, "web", at("10.0.0.3"))


def test_it_outlives_a_hand_over() -> None:
    overlay = Overlay().adding("web", backend("10.0.0.9", 3)).removing("both", at("10.0.0.1"))
    memory = new_shared_memory(1_024, 1)
    write_state(memory, Ids(), {}, overlay, Affinities())
    noted = read_state(memory)
    assert noted
    assert noted[2] == overlay


def test_ports_that_do_not_fit_any_more_are_passed_over() -> None:
    def app(*listen: str) -> Config:
        return Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1:8080": 1}, listen=list(listen)),))

    added = [backend(each) for each in ("10.0.0.1:8081", "10.0.0.1", "10.0.0.2:8080")]
    overlay = Overlay()
    for each in added:
        overlay = overlay.adding("web", each)
    assert addresses(overlay.over(app("tcp/80"))) == [
        "10.0.0.1:8080",
        "10.0.0.1:8081",
        "10.0.0.1",
        "10.0.0.2:8080",
    ]
    assert addresses(overlay.over(app("tcp/80-83"))) == ["10.0.0.1:8080", "10.0.0.1", "10.0.0.2:8080"]
    with pytest.raises(MisfitError, match=r"10.0.0.1:8081, which has ports of another backend"):
        with_backend(app("tcp/80-83"), "web", added[0])
    assert overlay.removing("web", at("10.0.0.1:8081")).added.keys() == {
        ("web", at("10.0.0.1")),
        ("web", at("10.0.0.2:8080")),
    }
