"""What is foretold of flows is what then happens to them, and asking changes nothing."""

import asyncio
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from test_explain import Daemon
from world import VIP

from loaded_mp.cli.whatif import lines
from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.control.commands import CommandError
from loaded_mp.fields import Endpoint
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.status import Forecast, ServiceForecast, Wanted
from loaded_mp.supervisor import forecast
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.overlay import without_backend
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.rates import Rates
from loaded_mp.supervisor.steering import Steering
from loaded_mp.supervisor.sweep import Forget, Sweeper
from loaded_mp.supervisor.what_if import WhatIf

BACKENDS = [f"10.0.0.{n}" for n in range(1, 5)]
CLIENTS = [f"198.51.100.{n}" for n in range(1, 61)]
NEW_CLIENTS = [f"198.51.{100 + n // 250}.{n % 250 + 1}" for n in range(250, 550)]


def web(scheduler: str = "wrr", weights: tuple[int, ...] = (1, 2, 3, 1), **more: object) -> Service:
    backends = dict(zip(BACKENDS, weights, strict=True))
    return service("web", [VIP[4]], backends, scheduler=scheduler, table_size=251, **more)


class World(Daemon):
    """A world of which is asked what if."""

    def __init__(self, *services: Service) -> None:
        super().__init__(*services)
        steering = Steering(self.supervised, Changes(self.supervised, Publisher(self.memory, list)))
        self.sweeper = Sweeper(self.table)
        own = OwnSchedulers(self.memory, self.supervised, Rates(self.memory, Accounting()), lambda: None)
        self._what_if = WhatIf(self.memory, self.supervised, steering, self.sweeper, own)

    def asked(
        self,
        weights: dict[str, int] | None = None,
        without: tuple[str, ...] = (),
        add: tuple[str, ...] = (),
        scheduler: str | None = None,
        service: str | None = None,
    ) -> Forecast:
        backends = [Backend.model_validate({"address": each}) for each in add]
        before = self.bytes()
        found = asyncio.run(self._what_if.asked(weights or {}, without, backends, scheduler, service))
        assert self.bytes() == before
        return found

    def homes(self, clients: list[str] = CLIENTS) -> dict[str, str]:
        """Where the next packet of each client goes; nowhere is empty."""
        homes = {client: self.happens(client, VIP[4]) for client in clients}
        return {client: home if isinstance(home, str) else "" for client, home in homes.items()}

    def take_over(self, config: Config) -> None:
        """As a reload does."""
        services = self.supervised.services
        self.supervised.configure(self.supervised.expand(config, services))
        self.show()
        asyncio.run(self.sweeper.once(Forget(self.table, self.supervised.removed())))

    def remove(self, address: str) -> None:
        self.take_over(without_backend(self.supervised.services.config, "web", Endpoint(ip_address(address))))


def moved(before: dict[str, str], after: dict[str, str]) -> dict[tuple[str, str], int]:
    """How many flows went from where to where."""
    return Counter((home, after[each]) for each, home in before.items() if home not in ("", after[each]))


def said(found: ServiceForecast) -> dict[tuple[str, str], int]:
    return {(each.address, each.to_address): each.flows for each in found.moves}


@settings(deadline=None, max_examples=12)
@given(
    scheduler=st.sampled_from([*SCHEDULERS]),
    weights=st.tuples(*[st.integers(1, 5)] * 4),
    gone=st.sampled_from(BACKENDS),
)
def test_who_moves_and_where_to_without_a_backend(
    scheduler: str, weights: tuple[int, int, int, int], gone: str
) -> None:
    world = World(web(scheduler, weights))
    before = world.homes()
    answer = world.asked(without=(gone,))
    world.remove(gone)
    after = world.homes()
    (found,) = answer.services
    assert said(found) == moved(before, after)
    assert answer.moves == [*before.values()].count(gone)
    assert answer.ends == 0
    counts = Counter(after.values())
    assert {each.address: each.flows_then for each in found.spread} == {
        each: None if each == gone else counts[each] for each in BACKENDS
    }


@pytest.mark.parametrize("scheduler", [*SCHEDULERS])
def test_the_share_of_new_flows_is_what_new_clients_then_see(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "TRIED_FLOWS", len(NEW_CLIENTS))
    world = World(web(scheduler, (1, 2, 3, 1)))
    world.homes()
    (found,) = world.asked({BACKENDS[1]: 5, BACKENDS[3]: 0}).services
    assert not found.moves
    world.state(BACKENDS[1]).weight, world.state(BACKENDS[3]).weight = 5, 0
    world.show()
    seen = Counter(world.homes(NEW_CLIENTS).values())
    within = 0 if found.by_open_flows else 0.05
    for each in found.spread:
        assert each.share_then is not None
        if scheduler == "dh":  # one VIP has one backend
            assert each.share_then in (0, 1)
        assert abs(each.share_then - seen[each.address] / len(NEW_CLIENTS)) <= within
    assert found.by_open_flows == (scheduler in ("lc", "wlc", "sed", "nq", "ovf", "twos", "lblc", "lblcr"))


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_how_many_clients_a_hash_sends_elsewhere(scheduler: str) -> None:
    world, other = World(web(scheduler)), World(web(scheduler, (1, 2, 6, 1)))
    (found,) = world.asked({BACKENDS[2]: 6}).services
    before, after = world.homes(NEW_CLIENTS), other.homes(NEW_CLIENTS)
    elsewhere = sum(before[each] != after[each] for each in NEW_CLIENTS) / len(NEW_CLIENTS)
    assert found.elsewhere is not None
    assert abs(found.elsewhere - elsewhere) < 0.05
    assert found.elsewhere > 0.1


def test_all_that_can_be_asked_at_once() -> None:
    world = World(web(), service("dns", ["192.0.2.20"], {"10.0.0.9": 1}))
    before = world.homes()
    (found,) = world.asked({BACKENDS[0]: 0}, (BACKENDS[1],), ("10.0.0.5",), "rr", "web").services
    assert (found.service, found.family, found.scheduler) == ("web", 4, "rr")
    assert {each.to_address for each in found.moves} == {BACKENDS[2], BACKENDS[3], "10.0.0.5"}
    assert sum(each.flows for each in found.moves) == [*before.values()].count(BACKENDS[1])
    shares = {each.address: (each.share and round(each.share, 2), each.share_then) for each in found.spread}
    assert shares == {
        BACKENDS[0]: (0.14, 0),
        BACKENDS[1]: (0.29, None),
        BACKENDS[2]: (0.43, 1 / 3),
        BACKENDS[3]: (0.14, 1 / 3),
        "10.0.0.5": (None, 1 / 3),
    }
    assert max(map(len, lines(world.asked(without=(BACKENDS[1],))))) <= 80


def test_where_nobody_is_left_flows_go_nowhere_and_those_of_the_down_are_told_apart() -> None:
    world = World(web())
    before = Counter(world.homes().values())
    for address in BACKENDS[:2]:
        world.state(address).wanted = Wanted.MAINTENANCE
    world.show()
    answer = world.asked({BACKENDS[2]: 0, BACKENDS[3]: 0}, (BACKENDS[0],))
    (found,) = answer.services
    assert said(found) == {(BACKENDS[0], ""): before[BACKENDS[0]]}
    assert found.homeless == before[BACKENDS[1]]
    assert "to nowhere: none gets new flows" in "\n".join(lines(answer))


def test_what_changes_nothing_and_what_cannot_be() -> None:
    world = World(web(), service("dns", ["192.0.2.20"], {"10.0.0.9": 1, BACKENDS[0]: 1}))
    assert world.asked({BACKENDS[1]: 2}).services == ()
    assert lines(world.asked({BACKENDS[1]: 2})) == [
        "nothing would change, neither for open flows nor for new ones"
    ]
    questions: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "what if what"),
        ({"without": ("10.0.0.77",)}, "there is no backend '10.0.0.77'"),
        ({"weights": {BACKENDS[0]: 2}}, "may be"),
        ({"scheduler": "mh"}, "say of which service: -s web"),
        ({"scheduler": "mh", "service": "x"}, "there is no service 'x'"),
        ({"add": (BACKENDS[0],), "service": "web"}, "twice in the service"),
        ({"without": ("10.0.0.9", BACKENDS[0]), "service": "dns"}, "is the last IPv4 backend"),
    )
    for question, fault in questions:
        with pytest.raises(CommandError, match=fault):
            world.asked(**question)


@pytest.mark.parametrize("affinity", ["source/28", "connection", "none"])
def test_flows_are_those_of_the_affinity(affinity: str) -> None:
    listen = ["udp/53"] if affinity == "none" else ["tcp/80"]
    world = World(web("mh", affinity=affinity, listen=listen))
    for client in CLIENTS:
        world.happens(
            client, VIP[4], "udp" if affinity == "none" else "tcp", 53 if affinity == "none" else 80
        )
    answer = world.asked(without=(BACKENDS[2],))
    flows = int(world.memory.active[:, world.backends["web", BACKENDS[2]]].sum())
    assert answer.moves == flows
    assert (flows > 0) == (affinity != "none")


def test_a_weight_that_workers_have_no_room_for_is_refused() -> None:
    world = World(*(service(f"s{n}", [f"192.0.2.{n}"], {"10.0.0.1": 1, "10.0.0.2": 1}) for n in range(1, 60)))
    for part in world.supervised.services.parts[1:]:
        world.supervised.states[next(iter(part.backends))].weight = 65_535
    with pytest.raises(CommandError, match="workers have room for 2,097,152 scheduler slots"):
        world.asked({"10.0.0.1": 65_535}, service="s1")
