"""Reading the flow table for people, and moving flows by the operator's word."""

import asyncio
import time
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from building import service
from test_explain import Daemon
from world import BACKENDS, CLIENT, VIP, VIPS

from loaded_mp.cli.flows import show
from loaded_mp.control.commands import CommandError
from loaded_mp.status import FlowsStatus
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.open_flows import OpenFlows
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.steering import Steering
from loaded_mp.supervisor.sweep import Sweeper

ALL_BACKENDS = dict.fromkeys(BACKENDS[4] + BACKENDS[6], 1)


class World(Daemon):
    """A world whose flows are looked into."""

    def __init__(self, affinity: str = "source") -> None:
        super().__init__(
            service("web", VIPS, ALL_BACKENDS, listen=["tcp/80"], affinity=affinity),
            service("dns", VIPS, ALL_BACKENDS, listen=["tcp/53"]),
        )
        self.now_s = int(time.monotonic())
        steering = Steering(self.supervised, Changes(self.supervised, Publisher(self.memory, list)))
        self.open_flows = OpenFlows(self.memory, self.supervised, steering, Sweeper(self.table))

    def listed(
        self,
        source: str | None = None,
        backend: str | None = None,
        service: str | None = None,
        most: int = 1_000,
    ) -> FlowsStatus:
        network = ip_network(source) if source else None
        return asyncio.run(self.open_flows.listed(network, backend, service, most))

    def move(self, source: str, backend: str, service: str | None = None) -> FlowsStatus:
        return asyncio.run(self.open_flows.move(ip_address(source), backend, service))

    def fill_up(self, version: int, clients: int, port: int = 80) -> dict[str, str]:
        """Clients and the backends that they came to."""
        prefix = "198.51.100." if version == 4 else "2001:db8:c::"
        sources = [f"{prefix}{n:d}" for n in range(1, clients + 1)]
        return {source: str(self.happens(source, VIP[version], "tcp", port)) for source in sources}


def test_flows_are_those_that_are_open() -> None:
    world = World()
    given = {**world.fill_up(4, 60), **world.fill_up(6, 60)}
    found = world.listed()
    assert found.total == len(given) == len(found.flows)
    assert {each.source: each.address for each in found.flows} == given
    assert {each.service for each in found.flows} == {"web"}
    assert all(each.confirmed is None and 8 <= each.left_s <= 10 for each in found.flows)
    assert world.happens(CLIENT[4], VIP[4]) == world.happens(CLIENT[4], VIP[4])
    (confirmed,) = world.listed(CLIENT[4]).flows
    assert confirmed.confirmed
    assert confirmed.left_s > 7_000


def test_flows_are_narrowed_and_counted() -> None:
    world = World()
    web, dns = world.fill_up(4, 100), world.fill_up(4, 50, port=53)
    world.fill_up(6, 10)
    assert world.listed(service="dns").total == 50
    assert world.listed("198.51.100.7").total == 2
    assert world.listed("198.51.100.0/27").total == 31 + 31
    assert world.listed("2001:db8:c::/64").total == 10
    first = BACKENDS[4][0]
    expected = [*web.values(), *dns.values()].count(first)
    assert world.listed(backend=first).total == expected
    few = world.listed(most=5)
    assert (few.total, len(few.flows)) == (160, 5)
    assert world.listed(most=0).flows == ()
    with pytest.raises(CommandError, match="there is no backend 'web9'"):
        world.listed(backend="web9")


def test_a_client_is_moved_and_nobody_else() -> None:
    world = World()
    before = world.fill_up(4, 40)
    other = world.fill_up(4, 40, port=53)
    source = "198.51.100.7"
    to = next(each for each in BACKENDS[4] if each not in (before[source], other[source]))
    active = world.memory.active.sum()
    moved = world.move(source, to, "web")
    assert [(each.source, each.service, each.address) for each in moved.flows] == [(source, "web", to)]
    assert world.memory.active.sum() == active
    for client, backend in before.items():
        assert world.happens(client, VIP[4]) == (to if client == source else backend)
    assert world.happens(source, VIP[4], "tcp", 53) == other[source]
    both = world.move(source, to)
    assert {each.service: each.address for each in both.flows} == {"web": to, "dns": to}
    assert world.happens(source, VIP[4], "tcp", 53) == to


def test_clients_of_a_network_share_a_flow_that_each_of_them_finds() -> None:
    world = World("source/24/64")
    world.fill_up(4, 9)
    world.fill_up(6, 9)
    for source, shown in (("198.51.100.7", "198.51.100.0/24"), ("2001:db8:c::7", "2001:db8:c::/64")):
        assert [each.source for each in world.listed(source).flows] == [shown]
    assert world.listed("198.51.101.7").total == 0
    world.move("198.51.100.7", BACKENDS[4][2])
    assert world.happens("198.51.100.8", VIP[4]) == BACKENDS[4][2]


def test_connections_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    world = World("connection")
    for version in (4, 6):
        for port in (40_000, 40_001):
            world.happens(CLIENT[version], VIP[version], "tcp", 80, port)
    found = world.listed()
    assert [(each.source, each.source_port, each.protocol, each.port) for each in found.flows] == [
        (CLIENT[version], port, "tcp", 80) for version in (4, 6) for port in (40_000, 40_001)
    ]
    show(found)
    said = capsys.readouterr().out
    assert f"  {CLIENT[4]}:40001 tcp/80\n    -> " in said
    assert f"  [{CLIENT[6]}]:40001 tcp/80\n    -> " in said


def test_nobody_is_moved_where_that_makes_no_sense() -> None:
    world = World()
    world.fill_up(4, 3)
    first = BACKENDS[4][0]
    with pytest.raises(CommandError, match="has no flow that could go to"):
        world.move("198.51.100.99", first)
    with pytest.raises(CommandError, match="has no flow that could go to"):
        world.move("198.51.100.1", BACKENDS[6][0])
    world.state(first).up = False
    world.state(first).cause = "refused"
    with pytest.raises(CommandError, match=r"10.0.0.1 is not usable \(down: refused\)"):
        world.move("198.51.100.1", first, "web")


def test_a_copy_that_a_dead_worker_left_is_no_flow() -> None:
    world = World()
    world.happens(CLIENT[4], VIP[4])
    (entry,) = np.flatnonzero(world.table.words)
    world.table.words[entry + 1] = world.table.words[entry]
    world.table.keys[entry + 1] = world.table.keys[entry]
    assert world.listed().total == 1


def test_a_list_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.fill_up(4, 3)
    world.fill_up(6, 3)
    long = (
        world.listed()
        .flows[-1]
        .model_copy(
            update={"source": "2001:db8:1111:2222:3333:4444:5555:6666", "backend": "a-name-that-is-long"}
        )
    )
    found = world.listed(most=6)
    show(found.model_copy(update={"flows": (*found.flows, long), "total": 3_000}))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "these are 7 of 3,000; see fewer with" in said
    show(FlowsStatus(total=0, flows=()))
    assert capsys.readouterr().out == "there are no such flows\n"
