"""What another configuration would change, in lines for people."""

from typing import Any

import pytest
from building import service

from loaded_mp.config.model import Config, NetworkSetup, Service
from loaded_mp.network.changes import AddAddress, AddChain, Change
from loaded_mp.services import Ids
from loaded_mp.supervisor.differences import bounded, rule_differences, service_differences, settings

VIPS4 = ["192.0.2.10"]
WEB = {"10.0.0.1": 1, "10.0.0.2": 1}


def web(backends: dict[str, int] = WEB, **more: Any) -> Service:
    return service("web", more.pop("vips", VIPS4), backends, **more)


OLD = service("old", ["192.0.2.20"], {"10.0.0.8": 1, "10.0.0.9": 1})


def lines(before: list[Service], after: list[Service], **more: Any) -> list[str]:
    """The differences, where each backend has ten flows and one for its number."""
    ids = Ids()
    old = ids.expand(Config(services=tuple(before)))
    new = ids.expand(Config(services=tuple(after), **more), old)
    return list(service_differences(old, new, {number: 10 + number for number in range(9)}))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ([web(), OLD], []),
        ([web({**WEB, "10.0.0.3": 4}), OLD], ["service web: backend 10.0.0.3 joins, weight 4"]),
        ([web({"10.0.0.1": 5, "10.0.0.2": 1}), OLD], ["service web: backend 10.0.0.1: weight: 1 -> 5"]),
        ([web(scheduler="rr"), OLD], ["service web: scheduler: wrr -> rr"]),
        ([web(listen=["tcp/80", "icmp"]), OLD], ["service web: listen: + tcp/80, + icmp"]),
        ([web(vips=["192.0.2.11"]), OLD], ["service web: vips: + 192.0.2.11/32, - 192.0.2.10/32"]),
        ([web(checks={"port": 80}), OLD], ["service web: 0 checks -> 1 check"]),
        ([web(initial="up"), OLD], ["service web: initial: default -> up"]),
        ([web(), OLD, service("dns", ["192.0.2.30"], {"10.0.0.5": 1})], ["service dns joins: 1 backend"]),
    ],
)
def test_what_moves_no_flow(after: list[Service], said: list[str]) -> None:
    assert lines([web(), OLD], after) == [*said, "flows: 0 move, 0 end"]


def test_another_way_of_forwarding_resets_connections_where_backends_know_another_address() -> None:
    before, after = web(forwarding="dr"), web(forwarding="tunnel", tunnel={"kind": "gue"})
    assert lines([before], [after]) == [
        "service web: forwarding: dr -> tunnel",
        "service web: tunnel.kind: ipip -> gue",
        "flows: 0 move, 0 end",
    ]
    assert "service web: connections are reset, as backends know them by the VIP then" in lines(
        [web()], [before]
    )
    assert "service web: connections are reset, as backends know them by their own address then" in lines(
        [before], [web()]
    )


def test_flows_of_a_backend_that_leaves_move_and_those_of_a_service_end() -> None:
    assert lines([web(), OLD], [web({"10.0.0.1": 1})]) == [
        "service web: backend 10.0.0.2 leaves: 11 flows move",
        "service old leaves: 25 flows end",
        "flows: 11 move, 25 end",
    ]


def test_flows_of_a_family_that_leaves_end() -> None:
    both = service("web", [*VIPS4, "2001:db8::10"], {"10.0.0.1": 1, "fd00::1": 1})
    assert lines([both], [web({"10.0.0.1": 1})]) == [
        "service web: vips: - 2001:db8::10/128",
        "service web: backend fd00::1 leaves: 11 flows end",
        "flows: 0 move, 11 end",
    ]


def test_a_service_with_another_name_goes_on() -> None:
    renamed = service("site", VIPS4, WEB)
    assert lines([web()], [renamed]) == ["service site: name: web -> site", "flows: 0 move, 0 end"]


def test_settings_of_all_and_of_the_network() -> None:
    network = NetworkSetup(masquerade=False)
    assert lines([web()], [web()], goodbye_s=3, metrics_listen="", network=network) == [
        "goodbye_s: 2.0 -> 3.0",
        'metrics_listen: 127.0.0.1:9128 -> ""',
        "network.masquerade: true -> false",
        "flows: 0 move, 0 end",
    ]


def test_what_needs_a_restart() -> None:
    before, after = (Config(services=(OLD,), flows=flows, user="x") for flows in (1_024, 2_048))
    assert settings(("flows", "user"), before, after) == ["flows: 1024 -> 2048"]
    assert settings(("user",), before, after) == []


def test_so_many_lines_as_people_read() -> None:
    assert bounded(["x"] * 200) == ["x"] * 200
    assert bounded(["x"] * 1_300) == [*["x"] * 200, "and 1,100 more"]


def chain(*rules: str) -> AddChain:
    return AddChain(family=4, table="raw", hook="PREROUTING", name="LOADED-X", rules=rules, why="")


def address(text: str) -> AddAddress:
    return AddAddress.model_validate({"link": "eth0", "address": text, "why": ""})


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([chain("a", "b")], [chain("a", "b")], []),
        ([chain("a", "b")], [chain("b", "c", "d")], ["rules of LOADED-X in iptables raw: 2 come, 1 go"]),
        ([], [chain("a")], ["rules of LOADED-X in iptables raw: 1 come, 0 go"]),
        ([chain("a")], [], ["rules of LOADED-X in iptables raw: 0 come, 1 go"]),
        ([address("192.0.2.1/24")], [], ["address 192.0.2.1/24 on eth0: goes"]),
        ([], [address("192.0.2.1/24")], ["address 192.0.2.1/24 on eth0: comes"]),
    ],
)
def test_rules_and_other_changes_of_this_machine(
    before: list[Change], after: list[Change], said: list[str]
) -> None:
    assert list(rule_differences(before, after)) == said
