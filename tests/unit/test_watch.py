"""What is missing of the network set-up, and how a fight about it is said."""

import asyncio
import logging
from collections.abc import Iterable
from ipaddress import ip_interface, ip_network

import pytest

from loaded_mp.fields import Network
from loaded_mp.network import iptables, links, setup, sysctls
from loaded_mp.network.changes import AddAddress, AddChain, AddRoute, Change, SetLinkUp, SetSysctl
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Link
from loaded_mp.network.news import News
from loaded_mp.network.presence import Look, Presence
from loaded_mp.supervisor.drift import FIGHT_MENDS, Drift

UP, DOWN = Link(True, 1500, True, 1), Link(False, 1500, False, 2)
VIP = AddAddress(link="public", address=ip_interface("192.0.2.10"), vip=True, why="")
GATEWAY = AddAddress(link="private", address=ip_interface("10.0.0.254/24"), why="")
ROUTE = AddRoute(link="private", network=ip_network("10.7.0.0/16"), why="")
FORWARD = SetSysctl(path="net/ipv4/ip_forward", value="1", previous="0", why="")
REDIRECTS = SetSysctl(path="net/ipv4/conf/private/send_redirects", value="0", previous="1", why="")
CHAIN = AddChain(
    family=4,
    table="raw",
    hook="PREROUTING",
    name="LOADED-PREROUTING",
    rules=("-d 192.0.2.10 -p tcp -j NFQUEUE --queue-num 0", "-j RETURN"),
    why="",
)
WANTED: tuple[Change, ...] = (FORWARD, REDIRECTS, GATEWAY, ROUTE, CHAIN, VIP)


class Machine:
    """What the readers of this machine find."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = {"public": UP, "private": UP}
        self.addresses = [("public", VIP.address), ("private", GATEWAY.address)]
        self.local: list[Network] = []
        self.routes = [ROUTE.network]
        self.settings = {FORWARD.path: "1", REDIRECTS.path: "0"}
        self.rules = [
            "-A PREROUTING -i eth7 -j ACCEPT",
            "-A PREROUTING -j LOADED-PREROUTING",
            "-A LOADED-PREROUTING -d 192.0.2.10/32 -p tcp -j NFQUEUE --queue-num 0",
            "-A LOADED-PREROUTING -j RETURN",
        ]
        monkeypatch.setattr(
            links,
            "read_links",
            lambda with_routes: links.Links(
                self.links, tuple(self.addresses), tuple(self.routes), tuple(self.local)
            ),
        )
        monkeypatch.setattr(sysctls, "read", lambda path: self.settings.get(path, ""))
        monkeypatch.setattr(iptables, "rules", lambda tool, table: self.rules)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_nothing_is_missing(machine: Machine) -> None:
    assert Presence().look(WANTED) == Look({}, frozenset(), frozenset({(VIP, 1)}))


def test_everything_that_is_missing_in_the_order_in_which_it_is_made(machine: Machine) -> None:
    machine.addresses, machine.routes, machine.rules = [], [], []
    machine.settings[FORWARD.path] = "0"
    look = Presence().look(WANTED)
    assert list(look.lost.values()) == [
        "net.ipv4.ip_forward=1",
        "address 10.0.0.254/24 on private",
        "route 10.7.0.0/16 over private",
        "rules of LOADED-PREROUTING in iptables raw",
        "address 192.0.2.10/32 on public",
    ]
    assert not look.announceable


def test_what_lies_on_an_interface_that_is_away_cannot_be_put_back(machine: Machine) -> None:
    machine.links = {"public": DOWN}
    machine.addresses = []
    del machine.settings[REDIRECTS.path]
    assert Presence().look(WANTED) == Look({}, frozenset({"public", "private"}), frozenset())


def test_an_interface_that_we_switched_on_is_switched_on_again(machine: Machine) -> None:
    machine.links["private"] = DOWN
    raised = SetLinkUp(link="private", why="")
    assert Presence().look((raised, *WANTED)).lost == {raised: "private up"}


@pytest.mark.parametrize(
    ("line", "other", "missing"),
    [
        (1, "", "jump to LOADED-PREROUTING in iptables raw"),
        (2, "", "rules of LOADED-PREROUTING in iptables raw"),
        (2, "-A LOADED-PREROUTING -j DROP", "rules of LOADED-PREROUTING in iptables raw"),
    ],
)
def test_rules(machine: Machine, line: int, other: str, missing: str) -> None:
    presence = Presence()
    presence.look(WANTED)
    machine.rules[line] = other
    assert presence.look(WANTED).lost == {CHAIN: missing}


def test_a_jump_that_has_to_be_the_first_one_is_put_there_anew(machine: Machine) -> None:
    chain = CHAIN.model_copy(update={"first": True})
    assert Presence().look([chain]).lost == {chain: "place of the jump to LOADED-PREROUTING in iptables raw"}
    machine.rules[0] = "-A PREROUTING -m mark --mark 0x7 -j LOADED-OTHER"
    assert not Presence().look([chain]).lost
    place = ["-D PREROUTING -j LOADED-PREROUTING", "-I PREROUTING 1 -j LOADED-PREROUTING", "COMMIT"]
    assert chain.text(jump=False).splitlines()[-3:] == place
    assert chain.text(jump=True).splitlines()[-2:] == place[-2:]


@pytest.mark.parametrize(("trouble", "due_s"), [("", 30), ("iptables hangs", 5)])
def test_all_is_looked_at_after_a_while_though_nothing_tells(
    monkeypatch: pytest.MonkeyPatch, trouble: str, due_s: float
) -> None:
    clock = Clock()
    monkeypatch.setattr("loaded_mp.supervisor.drift._GLANCE_S", 0.001)

    def glance(wanted: object) -> tuple[object, ...]:
        clock.now_s += 1
        return ()

    monkeypatch.setattr("loaded_mp.supervisor.drift.glance", glance)
    drift, began_s = Drift([], clock), clock.now_s
    drift._trouble = trouble
    asyncio.run(drift._wait(News(), ()))
    assert clock.now_s - began_s == due_s + 1


def mend(drift: Drift) -> None:
    asyncio.run(drift._mend())


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_fight_is_said_once_until_it_is_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(setup, "restore", lambda lost: machine.settings.update({FORWARD.path: "1"}))
    clock = Clock()
    drift = Drift([FORWARD], clock)
    caplog.set_level(logging.WARNING)

    def fought(times: int) -> list[str]:
        caplog.clear()
        for _ in range(times):
            machine.settings[FORWARD.path] = "0"
            mend(drift)
            clock.now_s += 5
        return [record.getMessage().split()[0] for record in caplog.records]

    assert fought(FIGHT_MENDS + 20) == ["event=drift-mended"] * FIGHT_MENDS + ["event=drift-fight"]
    assert drift.mends == FIGHT_MENDS + 20
    clock.now_s += 100
    assert fought(1) == ["event=drift-mended"]


def test_what_cannot_be_put_back_is_said_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(lost: Iterable[Change]) -> None:
        raise NetworkError("no")

    monkeypatch.setattr(setup, "restore", refuse)
    machine.settings[FORWARD.path] = "0"
    drift = Drift([FORWARD])
    mend(drift)
    mend(drift)
    (record,) = caplog.records
    wanted = 'event=drift-stays missing="net.ipv4.ip_forward=1" cause=no again_in_s=5.0'
    assert record.getMessage() == wanted
    assert drift.mends == 0
