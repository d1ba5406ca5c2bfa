"""The operator's words: whom they mean, what they do, and that they last."""

import pytest
from building import new_snapshot, service

from loaded_mp.config.model import Config, Service
from loaded_mp.control.commands import CommandError
from loaded_mp.memory.shared import SharedMemory, new_shared_memory
from loaded_mp.memory.snapshot import MAX_SLOTS, Flag, Snapshot
from loaded_mp.schedulers.scheduler import MAX_ROUND
from loaded_mp.status import Wanted
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.handover import Adopted, read_state
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.steering import Steering

CHECK = {"checks": ({"type": "tcp", "port": 80},)}


def named(name: str, **members: str) -> Service:
    """A service with backends of names; one for `a1`, `a2` is called a."""
    plain = service(name, ["192.0.2.10", "2001:db8::10"], dict.fromkeys(members.values(), 2), **CHECK)
    backends = [
        each.model_copy(update={"name": member[:-1]})
        for member, each in zip(members, plain.backends, strict=True)
    ]
    return plain.model_copy(update={"backends": tuple(backends)})


WEB = named("web", a1="10.0.0.1", a2="fd00::1", b1="10.0.0.2")
DNS = named("dns", a1="10.0.0.1", c1="10.0.0.3", c2="10.0.0.4")


class World:
    """Backends without a daemon."""

    def __init__(self, *services: Service, memory: SharedMemory | None = None) -> None:
        self.memory = memory or new_shared_memory(1_024, 1)
        noted = read_state(self.memory) if memory else None
        adopted = Adopted(self.memory, 0, *noted, {}, [], []) if noted else None
        self.backends = Backends(self.memory, Config(services=services), adopted)
        self.changes = Changes(self.backends, Publisher(self.memory, list))
        self.steering = Steering(self.backends, self.changes)

    def addresses(self, numbers: list[int]) -> list[str]:
        return [str(self.backends.services.part_of[number].backends[number].address) for number in numbers]

    def find(self, backend: str, service: str | None = None) -> list[str]:
        return self.addresses(self.steering.find(backend, service))

    def snapshot(self) -> Snapshot:
        snapshot = new_snapshot()
        self.backends.fill(snapshot)
        return snapshot

    def effective(self, number: int) -> tuple[int, bool]:
        """What workers read: the weight, and whether flows stay."""
        snapshot = self.snapshot()
        flags = int(snapshot.backend_flags[number])
        return int(snapshot.backend_weights[number]), bool(flags & Flag.USABLE)


@pytest.fixture
def world() -> World:
    return World(WEB, DNS)


def test_a_backend_is_a_name_or_an_address(world: World) -> None:
    assert world.find("b") == world.find("10.0.0.2") == ["10.0.0.2"]
    assert world.find("fd00::1") == world.find("fd00:0000:0000:0000:0000:0000:0000:0001") == ["fd00::1"]
    assert world.find("a", "web") == ["10.0.0.1", "fd00::1"]  # one machine
    assert world.find("a", "dns") == world.find("10.0.0.1", "dns") == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("backend", "service", "text"),
    [
        ("x", None, r"there is no backend 'x'; there are: a \(web, 10.0.0.1\), .*c \(dns, 10.0.0.4\)$"),
        ("b", "dns", r"there is no backend 'b'; there are: a \(dns, 10.0.0.1\), c \(dns, 10.0.0.3\), "),
        ("b", "x", "there is no service 'x'; there are: web, dns$"),
        ("a", None, r"'a' may be a \(web, 10.0.0.1\), .*a \(dns, 10.0.0.1\); say of which service: -s dns$"),
        ("10.0.0.1", None, "say of which service"),
        ("c", None, r"'c' may be c \(dns, 10.0.0.3\), c \(dns, 10.0.0.4\); say its address$"),
        ("", None, "there is no backend ''"),
    ],
)
def test_who_is_meant_must_be_clear(world: World, backend: str, service: str | None, text: str) -> None:
    with pytest.raises(CommandError, match=text):
        world.find(backend, service)


def test_of_thousands_the_first_are_named() -> None:
    many = named(
        "web", **{f"m{number}x": f"10.0.{number // 250}.{number % 250 + 1}" for number in range(2_000)}
    )
    with pytest.raises(CommandError, match=r"m0 \(web, 10.0.0.1\), .* and 1,990 more$"):
        World(many).find("x")


def test_what_words_do(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (number,) = world.steering.find("b", None)
    assert world.effective(number) == (2, True)
    for wanted, weight, usable in (
        (Wanted.DRAIN, 0, True),
        (Wanted.MAINTENANCE, 0, False),
        (Wanted.READY, 2, True),
    ):
        for _ in range(2):
            assert world.steering.want(wanted, "b", None) == [number]
        assert world.effective(number) == (weight, usable)
    for asked, weight in ((7, 7), (0, 0), (None, 2)):
        world.steering.weigh(asked, "b", None)
        assert world.effective(number) == (weight, True)
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "event=backend-drain",
        "event=backend-maintenance",
        "event=backend-ready",
        *["event=backend-weight"] * 3,
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_words_outlive_a_reload(world: World) -> None:
    (number,) = world.steering.want(Wanted.DRAIN, "b", None)
    (other,) = world.steering.weigh(9, "fd00::1", None)
    more = named("web", a1="10.0.0.1", a2="fd00::1", b1="10.0.0.2", d1="10.0.0.9")
    before = world.backends.services
    world.backends.configure(world.backends.expand(Config(services=(more, DNS)), before))
    assert world.effective(number) == (0, True)
    assert world.effective(other) == (9, True)


def test_words_outlive_a_hand_over(world: World) -> None:
    world.steering.want(Wanted.MAINTENANCE, "b", None)
    world.steering.weigh(9, "fd00::1", None)
    world.backends.note()
    after = World(WEB, DNS, memory=world.memory)
    assert after.effective(*after.steering.find("b", None)) == (0, False)
    assert after.effective(*after.steering.find("fd00::1", None)) == (9, True)
    after.steering.weigh(None, "fd00::1", None)
    assert after.effective(*after.steering.find("fd00::1", None)) == (2, True)


def test_weights_that_workers_have_no_room_for_are_refused() -> None:
    full = (MAX_SLOTS - 100) // MAX_ROUND  # so many services with all the slots that there may be have room
    names = [f"s{number}" for number in range(full + 2)]
    world = World(
        *(
            service(name, [f"192.0.2.{number + 1}"], {"10.0.0.1": 65_535, "10.0.0.2": 65_535})
            for number, name in enumerate(names)
        )
    )
    for name in names[:full]:
        world.steering.weigh(65_534, "10.0.0.1", name)
    world.snapshot()
    with pytest.raises(CommandError, match=f"room for {MAX_SLOTS:,} scheduler slots"):
        world.steering.weigh(65_534, "10.0.0.1", names[full])
    assert world.effective(*world.steering.find("10.0.0.1", names[full])) == (65_535, True)


def test_checks_that_were_not_asked_say_so(world: World) -> None:
    found = world.steering.checks("b", None)
    assert [(each.service, each.backend, each.check, each.passed, each.age_s) for each in found] == [
        ("web", "b", "connect to 10.0.0.2:80", None, None)
    ]
    assert len(world.steering.checks(None, "dns")) == 3
    assert len(world.steering.checks(None, None)) == 6


def test_an_address_alone_is_all_that_is_there() -> None:
    app = service(
        "app",
        ["192.0.2.20", "2001:db8::20"],
        dict.fromkeys(["10.0.0.9:8080", "10.0.0.9:8081", "[fd00::9]:8080", "10.0.0.8:8080"], 1),
        listen=["tcp/80"],
    )
    world = World(WEB, app)
    assert world.find("10.0.0.9") == ["10.0.0.9:8080", "10.0.0.9:8081"]
    assert world.find("10.0.0.9:8081") == ["10.0.0.9:8081"]
    assert world.find("[fd00:0::9]:8080") == world.find("fd00::9") == ["[fd00::9]:8080"]
    for word in ("10.0.0.9:80", "10.0.0.1:80", "fd00::9:8080"):
        with pytest.raises(CommandError, match="there is no backend"):
            world.find(word)
    assert [target.endpoint.port for target in world.backends.targets()] == [80] * 3


def test_a_check_asks_at_the_backends_own_port() -> None:
    checks = [{"type": "tcp"}, {"type": "tcp", "port": 7}, {"type": "http", "address": "10.9.9.9"}]
    backends = {"10.0.0.9:8080": 1, "10.0.0.9": 1}
    world = World(service("app", ["192.0.2.20"], backends, listen=["tcp/81"], checks=checks))
    assert [str(target.endpoint) for target in world.backends.targets()] == [
        "10.0.0.9:8080",
        "10.0.0.9:7",
        "10.9.9.9:8080",
        "10.0.0.9:81",
        "10.0.0.9:7",
        "10.9.9.9:80",
    ]
