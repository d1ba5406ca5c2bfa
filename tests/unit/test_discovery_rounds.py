"""Discovery without a network: whom to ask, who joins, who leaves, and what a round costs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from loaded_mp.checks.check import Finding, LocalError
from loaded_mp.checks.icmp import echo_request, is_echo
from loaded_mp.checks.runner import Target
from loaded_mp.config.model import Backend, Config
from loaded_mp.discovery.echo import Heard, Question, questions
from loaded_mp.discovery.finder import AT_ONCE, Finder
from loaded_mp.discovery.found import Absences, some
from loaded_mp.fields import Address, Endpoint, Interface
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.network.errors import NetworkError
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.overlay import MisfitError, Overlay, with_backend, without_backend

OWN = [
    ("eth0", "192.0.2.1/24"),
    ("eth0", "192.0.2.10/32"),
    ("eth1", "10.0.0.254/24"),
    ("eth1", "fd00::fe/64"),
    ("eth1", "fe80::1/64"),
    ("lo", "10.0.0.77/32"),
]


def own() -> list[tuple[str, Interface]]:
    return [(name, ip_interface(address)) for name, address in OWN]


def addresses(*texts: str) -> frozenset[Address]:
    return frozenset(map(ip_address, texts))


def config(backends: Sequence[str] = (), **discovery: Any) -> Config:
    service = {
        "name": "web",
        "vips": ["192.0.2.10", "2001:db8::10"],
        "checks": [{"type": "tcp", "port": 80}],
        "discovery": {"fall": 2, **discovery},
        "backends": [{"address": each} for each in backends],
    }
    network = {"private_interface": "eth1", "backend_networks": ["10.0.0.0/24", "fd00::/64"]}
    return Config.model_validate({"services": [service], "network": network})


@dataclass
class World:
    """What a finder has around it: who answers, who serves, and the configuration that runs."""

    config: Config
    answering: frozenset[Address] = frozenset()
    whole: bool = True
    faults: dict[Address, str] = field(default_factory=dict)
    serving: frozenset[Address] | None = None  #: None: all
    asked: list[Address] = field(default_factory=list)

    def finder(self) -> Finder:
        return Finder(
            lambda: self.config,
            self,
            lambda _, each: self.faults.get(each.ip),
            self.attempt,
            self.own,
            self.hear,
        )

    def round(self, finder: Finder) -> set[str]:
        """One round; who is there then."""
        asyncio.run(finder.look(self.config.services[0]))
        return {str(each.address) for each in self.config.services[0].backends}

    async def own(self) -> Sequence[tuple[str, Interface]]:
        return own()

    async def hear(self, asked: Sequence[Question], patience_s: float) -> Heard:
        return Heard(self.answering, self.whole)

    async def attempt(self, target: Target) -> Finding:
        self.asked.append(target.endpoint.ip)
        serves = self.serving is None or target.endpoint.ip in self.serving
        return Finding() if serves else Finding("refused")

    async def add(self, service: str, backend: Backend) -> list[str]:
        try:
            self.config = with_backend(self.config, service, backend)
        except MisfitError as misfit:
            return [str(misfit)]
        return []

    async def remove(self, service: str, endpoint: Endpoint) -> list[str]:
        try:
            self.config = without_backend(self.config, service, endpoint)
        except MisfitError as misfit:
            return [str(misfit)]
        return []


def test_everybody_is_asked_from_an_address_that_they_answer() -> None:
    networks = [ip_interface(each).network for each in ("10.0.0.0/24", "fd00::/64")]
    assert questions("eth1", own(), networks, None) == [
        Question("eth1", ip_address("10.0.0.254"), ip_address("10.0.0.255")),
        Question("eth1", ip_address("fd00::fe"), ip_address("ff02::1")),
    ]
    (asked, _) = questions("eth1", own(), networks, ip_address("10.0.0.127"))
    assert str(asked.target) == "10.0.0.127"
    (asked, _) = questions("eth1", own(), networks, ip_address("10.9.9.255"))
    assert str(asked.target) == "10.0.0.255"
    assert questions("eth0", own(), networks, None) == []


@pytest.mark.parametrize("version", [4, 6])
def test_only_the_reply_to_the_own_question_counts(version: int) -> None:
    text = bytes(range(16))
    before = b"\x45" + bytes(19) if version == 4 else b""
    reply = bytes([0 if version == 4 else 129]) + echo_request(version, text)[1:]
    assert is_echo(version, before + reply, text)
    assert not is_echo(version, before + reply, bytes(16))
    assert not is_echo(version, before + echo_request(version, text), text)


def test_who_answers_and_serves_joins() -> None:
    world = World(config(weight=3), addresses("10.0.0.1", "fd00::1", "10.0.0.2"))
    world.serving = addresses("10.0.0.1", "fd00::1")
    assert world.round(world.finder()) == {"10.0.0.1", "fd00::1"}
    assert [(each.weight, each.discovered) for each in world.config.services[0].backends] == [(3, True)] * 2


def test_never_this_machine_nor_a_vip_nor_who_is_outside_or_not_allowed() -> None:
    world = World(config(networks=["10.0.0.0/24", "192.0.2.0/24"], allow=["10.0.0.0/25", "192.0.2.0/24"]))
    world.answering = addresses(
        "10.0.0.254", "10.0.0.77", "192.0.2.10", "192.0.2.1", "10.0.1.1", "10.0.0.200", "fd00::1", "10.0.0.3"
    )
    assert world.round(world.finder()) == {"10.0.0.3"}
    assert world.asked == [ip_address("10.0.0.3")]


def test_who_is_away_in_so_many_rounds_leaves_and_nobody_else() -> None:
    world = World(config(["10.0.0.9"]), addresses("10.0.0.1", "10.0.0.2"))
    finder = world.finder()
    everybody = {"10.0.0.9", "10.0.0.1", "10.0.0.2"}
    assert world.round(finder) == everybody
    world.answering = addresses("10.0.0.1")
    assert world.round(finder) == everybody
    world.answering = addresses("10.0.0.1", "10.0.0.2")
    assert world.round(finder) == everybody
    world.answering = addresses("10.0.0.1")
    assert world.round(finder) == everybody
    assert world.round(finder) == {"10.0.0.9", "10.0.0.1"}  # that of the configuration stays


def test_whose_check_fails_leaves_and_comes_back_when_it_passes(caplog: pytest.LogCaptureFixture) -> None:
    world = World(config(), addresses("10.0.0.1"))
    finder = world.finder()
    world.round(finder)
    world.serving, world.faults = frozenset(), {ip_address("10.0.0.1"): "connect: refused"}
    assert world.round(finder) == {"10.0.0.1"}
    assert world.round(finder) == set()
    assert 'event=left service=web backend=10.0.0.1 cause="connect: refused"' in caplog.text
    world.serving, world.faults = None, {}
    assert world.round(finder) == {"10.0.0.1"}


def test_where_answers_were_lost_silence_means_nothing() -> None:
    world = World(config(), addresses("10.0.0.1"))
    finder = world.finder()
    world.round(finder)
    world.answering, world.whole = frozenset(), False
    assert [world.round(finder) for _ in range(5)] == [{"10.0.0.1"}] * 5


def test_a_flood_is_bounded_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    many = addresses(*(f"10.0.{n >> 8}.{n & 255}" for n in range(1, 2_000)))
    world = World(config(most=100, networks=["10.0.0.0/16"]), many)
    finder = world.finder()
    assert len(world.round(finder)) == len(world.asked) == AT_ONCE
    assert len(world.round(finder)) == len(world.asked) == 100
    there = world.round(finder)
    assert world.round(finder) == there
    assert len(world.asked) == 100
    assert caplog.text.count("100 machines have joined, which is the most") == 1


def test_nobody_keeps_others_out_by_answering_always() -> None:
    world = World(config(most=4), addresses(*(f"10.0.0.{n}" for n in range(1, 251))))
    world.serving = addresses("10.0.0.200")
    finder = world.finder()
    assert any("10.0.0.200" in world.round(finder) for _ in range(2_000))


def test_what_hinders_is_said_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    world = World(config(), addresses("10.0.0.1"))
    finder = world.finder()

    async def none() -> Sequence[tuple[str, Interface]]:
        return [each for each in own() if each[1].version == 4]

    async def broken() -> Sequence[tuple[str, Interface]]:
        raise NetworkError("no netlink")

    finder.addresses = none
    assert [world.round(finder) for _ in range(2)] == [{"10.0.0.1"}] * 2
    assert caplog.text.count("eth1 has no address in fd00::/64") == 1
    finder.addresses = broken
    world.round(finder)
    assert "no netlink" in caplog.text


def test_who_cannot_be_asked_does_not_join() -> None:
    world = World(config(), addresses("10.0.0.1"))

    async def attempt(target: Target) -> Finding:
        raise LocalError("no descriptors")

    finder = world.finder()
    finder.attempt = attempt
    assert world.round(finder) == set()


def test_when_it_is_switched_off_all_leave() -> None:
    world = World(config(["10.0.0.9", "fd00::9"]), addresses("10.0.0.1", "fd00::1"))
    finder = world.finder()
    world.round(finder)
    service = world.config.services[0].model_copy(update={"discovery": None})
    world.config = world.config.model_copy(update={"services": (service,)})
    assert world.round(finder) == {"10.0.0.9", "fd00::9"}


def test_a_round_goes_on_as_a_reload_wants_it() -> None:
    world = World(config(["10.0.0.9", "fd00::9"]), addresses("10.0.0.1"))
    finder = world.finder()
    before = world.config.services[0]
    service = before.model_copy(update={"discovery": None})
    world.config = world.config.model_copy(update={"services": (service,)})
    asyncio.run(finder.look(before))
    assert len(world.config.services[0].backends) == 2


def test_it_looks_once_in_an_interval() -> None:
    world = World(config(interval_s=0.05), addresses("10.0.0.1"))
    rounds = 0

    async def hear(asked: Sequence[Question], patience_s: float) -> Heard:
        nonlocal rounds
        rounds += 1
        assert patience_s == 0.05
        return Heard(world.answering, True)

    async def run() -> None:
        finder = world.finder()
        finder.hear = hear
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await finder.run()

    asyncio.run(run())
    assert 3 <= rounds <= 11


def test_absences_are_counted_in_a_row() -> None:
    one, two = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    absences = Absences()
    assert absences.after([one, two], {one}, 2) == []
    assert absences.after([one, two], {two}, 2) == []
    assert absences.after([one, two], {two}, 2) == [one]
    assert absences.after([two], {two}, 2) == []
    assert absences.rounds == {two: 0}  # who has left is forgotten


def test_some_of_few_are_all() -> None:
    few = [ip_address("10.0.0.1"), ip_address("10.0.0.2")]
    assert sorted(some(few, 9), key=str) == few
    assert len(some(few, 1)) == 1
    assert some(few, -1) == []


def test_an_overlay_of_the_discovered_needs_no_other_backend() -> None:
    backend = Backend(address=ip_address("10.0.0.1"), discovered=True)
    overlay = Overlay().adding("web", backend)
    assert overlay.over(config()).services[0].backends == (backend,)
    assert overlay.removing("web", backend.address).over(config()).services[0].backends == ()


def test_who_was_discovered_is_not_saved() -> None:
    backends = Backends(new_shared_memory(1_024, 1), config(["10.0.0.9"]))
    operators, found = (
        Backend(address=ip_address("10.0.0.1")),
        Backend(address=ip_address("10.0.0.2"), discovered=True),
    )
    backends.overlay = Overlay().adding("web", operators).adding("web", found)
    assert backends.unsaved(None).added == (("web", operators),)
