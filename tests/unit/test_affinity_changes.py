"""Affinities that services had before: no connection notices the change, and none is remembered for good."""

from typing import Any

import numpy as np
import pytest
from building import build, many, service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from world import BACKENDS, VIP, World, client, web

from loaded_mp.config.model import Config
from loaded_mp.datapath.affinity import NUMBERS
from loaded_mp.flows.table import MAX_VALUE, expire
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.memory.snapshot import MAX_BEFORE, ServiceColumn
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.affinities import Affinities, Outlived
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.handover import Adopted, read_state

both = pytest.mark.parametrize("version", [4, 6])
AFFINITIES = ["source", "source/24/64", "source/16/32", "connection"]


class Clients:
    """Clients of one world, who find each of their connections where it began."""

    def __init__(self, version: int, affinity: str) -> None:
        self.layer: Any = IP if version == 4 else IPv6
        self.vip = VIP[version]
        self.world = World(web(affinity=affinity), flows=1_024)
        self.affinity = affinity
        self.down: tuple[str, ...] = ()
        self.homes: dict[tuple[str, str, int], str] = {}  #: by protocol, address and port
        self.outlived = Outlived(self.world.table, self.world.affinities, self.publish)

    def publish(self) -> None:
        self.world.publish(web(affinity=self.affinity), down=self.down)

    def change(self, affinity: str) -> None:
        self.affinity = affinity
        self.publish()

    def take_down(self, backend: str) -> None:
        self.down = (backend,)
        self.publish()
        self.homes = {ends: home for ends, home in self.homes.items() if home != backend}

    def take_up(self) -> None:
        self.down = ()
        self.publish()

    def send(self, protocol: str, source: str, port: int, flags: str = "A") -> str:
        layer = TCP(sport=port, dport=80, flags=flags) if protocol == "tcp" else UDP(sport=port, dport=80)
        return self.world.backend_of(self.layer(src=source, dst=self.vip) / layer)

    def begin(self, protocol: str, source: str, port: int) -> None:
        self.homes[protocol, source, port] = self.send(protocol, source, port, "S")

    def end(self, protocol: str, source: str, port: int) -> None:
        if self.homes.pop((protocol, source, port), ""):
            self.send(protocol, source, port, "FA")

    def go_on(self) -> None:
        """Each connection is where it was, in both directions, also where conntrack has forgotten it."""
        for (protocol, source, port), home in self.homes.items():
            assert self.send(protocol, source, port) == home
            answer = TCP(sport=80, dport=port, flags="PA") if protocol == "tcp" else UDP(sport=80, dport=port)
            reply = self.layer(src=home, dst=source) / answer
            for forgotten in (False, True):
                reason, data = self.world.reply(reply, forgotten=forgotten)
                assert reason == Reason.OK
                assert self.layer(data).src == self.vip

    def sweep(self) -> None:
        self.outlived.begin()
        self.outlived.visit(0, self.world.table.words.size)
        self.outlived.end()


@both
@pytest.mark.parametrize("new", AFFINITIES)
@pytest.mark.parametrize("old", AFFINITIES)
def test_no_connection_notices_another_affinity(version: int, old: str, new: str) -> None:
    clients = Clients(version, old)
    for host in range(1, 4):
        for port in range(1, 4):
            clients.begin("tcp", client(version, 0, host), port)
    clients.change(new)
    for host in (*range(1, 4), *range(100, 104)):
        clients.begin("tcp", client(version, 0, host), 1_000 + host)
    clients.go_on()


ENDS = st.tuples(st.sampled_from(["tcp", "udp"]), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
EVENTS = st.one_of(
    st.tuples(st.just("begin"), ENDS),
    st.tuples(st.just("begin"), ENDS),
    st.tuples(st.just("end"), ENDS),
    st.tuples(st.just("down"), st.integers(0, 2)),
    st.tuples(st.just("up")),
    st.tuples(st.just("sweep")),
)
#: What happens to clients, and changes of affinity between that.
LIVES = st.lists(
    st.tuples(st.sampled_from(AFFINITIES), st.lists(EVENTS, min_size=1, max_size=6)),
    min_size=2,
    max_size=7,
)


@settings(deadline=None, max_examples=many(160))
@given(version=st.sampled_from([4, 6]), lives=LIVES)
def test_each_connection_stays_where_it_began(
    version: int, lives: list[tuple[str, list[tuple[Any, ...]]]]
) -> None:
    clients = Clients(version, lives[0][0])
    for affinity, events in lives:
        clients.change(affinity)
        for what, *more in events:
            match what, more:
                case "begin" | "end", [(protocol, network, host, port)]:
                    getattr(clients, what)(protocol, client(version, network, host), port)
                case "down", [number]:
                    clients.take_down(BACKENDS[version][number])
                case "up", []:
                    clients.take_up()
                case "sweep", []:
                    clients.sweep()
            clients.go_on()


@both
def test_the_ports_of_a_connection_that_has_ended_begin_another_one(version: int) -> None:
    clients = Clients(version, "connection")
    source = client(version, 0, 1)
    for port in (1, 2, 3):
        clients.begin("tcp", source, port)
    home = clients.homes["tcp", source, 3]
    clients.end("tcp", source, 1)
    clients.change("source")
    clients.begin("tcp", source, 4)
    for port in (1, 5):
        clients.begin("tcp", source, port)
        assert clients.homes["tcp", source, port] == clients.homes["tcp", source, 4]
    clients.go_on()
    assert clients.homes["tcp", source, 3] == home


@both
def test_who_has_moved_stays_when_the_backend_from_before_is_up_again(version: int) -> None:
    clients = Clients(version, "source")
    source = client(version, 0, 1)
    clients.begin("tcp", source, 1)
    clients.change("source/24/64")
    clients.take_down(clients.homes["tcp", source, 1])
    clients.begin("tcp", source, 2)
    clients.take_up()
    clients.go_on()


def with_affinity(affinity: str) -> Config:
    return Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, affinity=affinity),))


def test_more_changes_than_are_remembered_are_said() -> None:
    supervised = Backends(new_shared_memory(1_024, 1), with_affinity("connection"))

    def may_move(affinity: str) -> list[str]:
        return list(supervised.may_move(supervised.imagined(with_affinity(affinity))))

    for prefix in range(24, 24 + MAX_BEFORE):
        assert may_move(f"source/{prefix}") == []
        supervised.configure(supervised.expand(with_affinity(f"source/{prefix}"), supervised.services))
    assert may_move(f"source/{prefix}/64") == [], "of IPv4 that is the same"
    assert may_move("connection") == [], "as at first"
    assert may_move("source") == ["service web: IPv4 flows from before its last 8 changes of affinity move"]


def test_nothing_is_from_before_where_each_packet_went_by_itself() -> None:
    def dns(affinity: str) -> Config:
        backends = {"10.0.0.1": 1}
        return Config(
            services=(service("dns", ["192.0.2.10"], backends, listen=["udp/53"], affinity=affinity),)
        )

    supervised = Backends(new_shared_memory(1_024, 1), dns("none"))
    assert list(supervised.may_move(supervised.imagined(dns("source")))) == []
    supervised.configure(supervised.expand(dns("source"), supervised.services))
    assert supervised.affinities.before() == set()


def test_a_number_that_flows_may_have_is_not_given_again() -> None:
    """Of the first affinity there is a flow all the time, of the others none is left soon."""
    affinities = Affinities()
    for change in range(3 * NUMBERS):
        build(web(affinity=f"source/{8 + change % 2}/{32 + change % 2}"), affinities=affinities)
        for first, *_, last in (each for each in affinities.successions.values() if change):
            assert first.number == 0 != last.number
        affinities.forget({each for each in affinities.before() if each[1]})


def test_what_a_service_has_is_not_forgotten() -> None:
    affinities = Affinities()
    _, parts = build(web(), affinities=affinities)
    affinities.forget({(part.id, 0) for part in parts})
    assert all(len(affinities.successions[part.id]) == 1 for part in parts)


def test_an_affinity_is_forgotten_once_no_flow_is_of_it() -> None:
    clients = Clients(4, "source")
    source = client(4, 0, 1)
    clients.begin("tcp", source, 1)
    clients.change("connection")
    clients.begin("tcp", source, 2)
    clients.change("source/24/64")

    def remembered() -> list[str]:
        """Of IPv4, with as many in the snapshot; of IPv6 there are no flows."""
        (part,) = (each for each in clients.world.parts if each.family == 4)
        *before, _ = clients.world.affinities.successions[part.id]
        assert clients.world.snapshot.services[part.id, ServiceColumn.BEFORE] == len(before)
        return [str(each.affinity) for each in before]

    for _ in range(3):
        clients.sweep()
        assert remembered() == ["source", "connection"]
    clients.world.now_s += 10_000
    table = clients.world.table
    expire(table, 0, table.words.size, clients.world.now_s, np.zeros(MAX_VALUE + 1, np.int64))
    clients.homes.clear()
    clients.begin("udp", source, 3)
    clients.change("source")
    clients.sweep()
    assert remembered() == ["source", "connection", "source/24/64"], "workers may not have read of it yet"
    for _ in range(3):
        clients.sweep()
        assert remembered() == ["source/24/64"], "it has a flow"
    clients.go_on()


@both
def test_a_service_goes_to_and_fro_as_often_as_one_likes(version: int) -> None:
    clients = Clients(version, "source")
    for change in range(3 * MAX_BEFORE):
        clients.begin("tcp", client(version, 0, change + 1), change + 1)
        clients.change(("connection", "source")[change % 2])
        clients.go_on()
        assert all(len(each) == 2 for each in clients.world.affinities.successions.values())


def test_it_outlives_a_hand_over() -> None:
    memory = new_shared_memory(1_024, 1)
    ran = Backends(memory, with_affinity("connection"))
    ran.configure(ran.expand(with_affinity("source/24"), ran.services))
    ran.note()
    noted = read_state(memory)
    assert noted
    for affinity, expected in (
        ("source/24", ["connection", "source/24/128"]),
        ("source", ["connection", "source/24/128", "source"]),
    ):
        adopted = Adopted(memory, 0, *noted, {}, [], [])
        goes_on = Backends(memory, with_affinity(affinity), adopted)
        (succession,) = goes_on.affinities.successions.values()
        assert [str(each.affinity) for each in succession] == expected
        assert [each.number for each in succession] == list(range(len(expected)))
