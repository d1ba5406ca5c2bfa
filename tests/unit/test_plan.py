"""The plan: which changes a host needs for a configuration."""

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from loaded_mp.config.model import Backend, Config
from loaded_mp.network.changes import AddAddress, AddChain, AddLocalRoute, SetSysctl
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Host, Link
from loaded_mp.plan import Plan
from loaded_mp.plan import plan as plan_of
from loaded_mp.services import Part, Services, services_of

SYSCTLS = {
    "net/ipv4/ip_forward": "0",
    "net/ipv4/icmp_echo_ignore_broadcasts": "1",
    "net/ipv4/conf/all/accept_redirects": "1",
    **{f"net/ipv4/conf/{name}/forwarding": "0" for name in ("all", "default", "eth0", "eth1")},
    **{f"net/ipv4/conf/{name}/send_redirects": "1" for name in ("all", "default", "eth0", "eth1")},
    **{f"net/ipv6/conf/{name}/forwarding": "0" for name in ("all", "default", "eth0", "eth1")},
    **{f"net/ipv6/conf/{name}/accept_ra": "1" for name in ("all", "default", "eth0", "eth1")},
}
LINKS = {"lo": Link(True, 65_536), "eth0": Link(True, 1_500), "eth1": Link(True, 1_500)}


def host(
    links: dict[str, Link] | None = None,
    addresses: tuple[tuple[str, str], ...] = (("eth0", "192.0.2.1/24"), ("eth0", "2001:db8::1/64")),
    routes: tuple[str, ...] = (),
    sysctls: Mapping[str, str] | None = None,
    gateways: tuple[str, ...] = (),
) -> Host:
    return Host(
        LINKS | (links or {}),
        tuple((name, ip_interface(address)) for name, address in addresses),
        tuple(ip_network(route) for route in routes),
        {**SYSCTLS, **(sysctls or {})},
        tuple(ip_network(route) for route in gateways),
    )


def config(service: Mapping[str, Any] | None = None, **network: Any) -> Config:
    """Both families, two interfaces, everything balanced; `network` overrides."""
    return Config.model_validate(
        {
            "services": [
                {
                    "name": "web",
                    "vips": ["192.0.2.10", "2001:db8::10"],
                    "backends": [{"address": "10.0.0.1"}, {"address": "fd00::1"}],
                }
                | dict(service or {})
            ],
            "network": {
                "public_interface": "eth0",
                "private_interface": "eth1",
                "private_addresses": ["10.0.0.254/24", "fd00::ff/64"],
                "backend_networks": ["10.0.0.0/24", "fd00::/64"],
            }
            | network,
        }
    )


def with_queues(wanted: Config, first_queue: int, workers: int) -> Config:
    return wanted.model_copy(update={"first_queue": first_queue, "workers": workers})


def plan(wanted: Config, here: Host, first_queue: int, workers: int) -> Plan:
    return plan_of(services_of(with_queues(wanted, first_queue, workers)), here)


def plan_with_ids(backends: dict[int, str], **service: Any) -> Plan:
    """The plan for a service with these backends by id, in the way of conntrack unless another is said."""
    wanted = with_queues(config({"forwarding": "conntrack", **service}), 0, 2)
    (web,) = wanted.services
    listed = {number: Backend.model_validate({"address": text}) for number, text in backends.items()}
    vip4, vip6 = (vip.ip for vip in web.vips)
    parts = Part(0, 4, web, {0: vip4}, listed), Part(1, 6, web, {1: vip6}, {})
    return plan_of(Services(wanted, parts), host())


def commands(found: Plan) -> list[str]:
    return [change.command for change in found.changes if not isinstance(change, AddChain)]


def rules(found: Plan, family: int, name: str) -> list[str]:
    """The rules of a chain, without those that keep requests from conntrack (tests of their own), and without
    what lets packets of the fast path go on.
    """
    return [
        rule
        for rule in all_rules(found, family, name)
        if not rule.endswith("-j CT --notrack") and rule not in FORWARDED
    ]


def all_rules(found: Plan, family: int, name: str) -> list[str]:
    chains = [
        change
        for change in found.changes
        if isinstance(change, AddChain) and (change.family, change.name) == (family, name)
    ]
    assert len(chains) <= 1
    return list(chains[0].rules) if chains else []


def test_the_whole_plan_in_order() -> None:
    found = plan(config(), host(), 0, 4)
    assert commands(found) == [
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv4.conf.all.send_redirects=0",
        "sysctl -w net.ipv4.conf.eth0.send_redirects=0",
        "sysctl -w net.ipv4.conf.eth1.send_redirects=0",
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        "sysctl -w net.ipv6.conf.eth1.accept_ra=2",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
        "ip address add 10.0.0.254/24 dev eth1",
        "ip address add fd00::ff/64 dev eth1 nodad",
        "ip address add 192.0.2.10/32 dev eth0",
        "ip address add 2001:db8::10/128 dev eth0 nodad preferred_lft 0",
    ]
    assert found.notes == (
        FAST_PATH,
        "service web: no listen: clients reach every port of its backends by its VIPs",
    )
    kinds = [change.kind for change in found.changes]
    assert kinds[-8:] == ["chain"] * 6 + ["address"] * 2, "the rules stand before the VIPs"
    assert all(change.why for change in found.changes)


#: A request's mark is kept with its connection; replies get it, and are queued.
MARK = "--mark 0x4c4d2000/0xfffff000"


FAST_PATH = "the fast path: programs at tc ingress and egress of eth0, eth1, where Linux has them (6.12)"
LEAVING = [
    *(
        f"-o {interface} -m mark --mark 0x4c510000 -m connmark {MARK} -j CONNMARK --restore-mark"
        " --nfmask 0x2fff --ctmask 0x2fff"
        for interface in ("eth0", "eth1")
    ),
    "-m mark --mark 0x4c512000/0xfffff000 -j RETURN",
]
FORWARDED = [
    rule
    for network in ("10.0.0.0/24", "fd00::/64")
    for rule in (
        f"-d {network} -m mark {MARK} -j RETURN",
        f"! -i eth0 -s {network} -m mark --mark 0x4c510000 -j RETURN",
    )
]


def marked(queue: str, *leaving: str) -> list[str]:
    return [
        f"-m mark {MARK} -j CONNMARK --save-mark",
        f"-m mark {MARK} -j RETURN",
        *leaving,
        f"-m connmark {MARK} -j CONNMARK --restore-mark",
        f"-m mark {MARK} {queue}",
    ]


def misplaced(network: str, queue: str) -> list[str]:
    return [
        f"-i eth0 -s {network} -j MARK --set-mark 0x4c4e0000",
        f"-m mark --mark 0x4c4e0000 {queue}",
    ]


def test_rules_of_ipv4() -> None:
    found = plan(config(), host(), 3, 4)
    queue = "-j NFQUEUE --queue-balance 3:6"
    requests = [f"-d 192.0.2.10 {queue}"]
    assert all_rules(found, 4, "LOADED-PREROUTING")[:2] == FORWARDED[:2]
    assert rules(found, 4, "LOADED-PREROUTING") == [*misplaced("10.0.0.0/24", queue), *requests]
    assert rules(found, 4, "LOADED-OUTPUT") == requests
    assert rules(found, 4, "LOADED-INPUT") == marked(queue)
    assert rules(found, 4, "LOADED-POSTROUTING") == [
        *marked(queue, *LEAVING),
        "-m mark --mark 0x4c510000 -j MARK --set-mark 0",
        "-o lo -j RETURN",
        "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        f"-p icmp --icmp-type destination-unreachable {queue}",
        f"-p icmp --icmp-type time-exceeded {queue}",
        f"-p icmp --icmp-type parameter-problem {queue}",
        "-p tcp --syn -j RETURN",
        "-p icmp --icmp-type echo-request -j RETURN",
        "-s 10.0.0.254 -j RETURN",
        f"-s 10.0.0.0/24 {queue}",
    ]
    assert rules(found, 4, "LOADED-NAT") == ["-d 10.0.0.0/24 -j RETURN", "-s 10.0.0.0/24 -j MASQUERADE"]


def test_rules_of_ipv6_spare_neighbour_discovery() -> None:
    found = plan(config(), host(), 3, 1)
    queue = "-j NFQUEUE --queue-num 3"
    link = [f"-p icmpv6 --icmpv6-type {n} -j RETURN" for n in (130, 131, 132, 133, 134, 135, 136, 137, 143)]
    assert all_rules(found, 6, "LOADED-PREROUTING")[:2] == FORWARDED[2:]
    assert rules(found, 6, "LOADED-PREROUTING") == [
        *link,
        *misplaced("fd00::/64", queue),
        f"-d 2001:db8::10 {queue}",
    ]
    link[7] = "-p icmpv6 --icmpv6-type 137 -j DROP"
    assert rules(found, 6, "LOADED-POSTROUTING") == [
        *marked(queue, *LEAVING),
        "-m mark --mark 0x4c510000 -j MARK --set-mark 0",
        "-o lo -j RETURN",
        *link,
        "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        *(f"-p icmpv6 --icmpv6-type {n} {queue}" for n in (1, 2, 3, 4)),
        "-p tcp --syn -j RETURN",
        "-p icmpv6 --icmpv6-type echo-request -j RETURN",
        "-s fd00::ff -j RETURN",
        f"-s fd00::/64 {queue}",
    ]


def test_clients_on_a_link_of_backends_get_the_address_of_this_host() -> None:
    on_link = host(addresses=(("eth1", "10.0.0.253/23"), ("eth0", "192.0.2.1/24")))
    mark = "-m mark --mark 0x4c4d0000/0xffff0000 -j MASQUERADE"
    for forwarding in ("rewrite", "conntrack"):
        assert rules(plan(config({"forwarding": forwarding}), on_link, 0, 1), 4, "LOADED-HAIRPIN") == [
            f"-s 10.0.0.0/23 {mark}",
            f"-s 10.0.0.0/24 {mark}",
            f"-s 192.0.2.10 {mark}",
        ]


def test_where_clients_and_backends_share_an_interface_none_is_misplaced() -> None:
    for network in ({"private_interface": "eth0"}, {"private_interface": None}, {"public_interface": None}):
        found = plan(config(**network), host(), 0, 1)
        assert not any("MARK --set-mark" in rule for rule in rules(found, 4, "LOADED-PREROUTING"))


def test_limits_are_mirrored_for_replies() -> None:
    listen = {"listen": ["tcp/80", "udp/5000-5010", "icmp", "tcp"]}
    found = plan(config(listen), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    assert rules(found, 4, "LOADED-OUTPUT") == [
        f"-d 192.0.2.10 -p tcp --dport 80 {queue}",
        f"-d 192.0.2.10 -p udp --dport 5000:5010 {queue}",
        f"-d 192.0.2.10 -p icmp {queue}",
        f"-d 192.0.2.10 -p tcp {queue}",
    ]
    assert rules(found, 6, "LOADED-POSTROUTING")[-4:] == [
        f"-s fd00::/64 -p tcp --sport 80 {queue}",
        f"-s fd00::/64 -p udp --sport 5000:5010 {queue}",
        f"-s fd00::/64 -p icmpv6 {queue}",
        f"-s fd00::/64 -p tcp {queue}",
    ]


def test_icmp_errors_are_queued_whatever_the_limits() -> None:
    found = plan(config({"listen": ["tcp/80"]}), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    assert rules(found, 4, "LOADED-PREROUTING")[-3:] == [
        f"-d 192.0.2.10 -p icmp --icmp-type {name} {queue}"
        for name in ("destination-unreachable", "time-exceeded", "parameter-problem")
    ]
    assert rules(found, 6, "LOADED-PREROUTING")[-4:] == [
        f"-d 2001:db8::10 -p icmpv6 --icmpv6-type {n} {queue}" for n in (1, 2, 3, 4)
    ]


def test_one_service_without_limits_lifts_those_of_the_replies() -> None:
    both = Config.model_validate(
        {
            "services": [
                {
                    "name": "a",
                    "vips": ["192.0.2.10"],
                    "listen": ["tcp/80"],
                    "backends": [{"address": "10.0.0.1"}],
                },
                {"name": "b", "vips": ["192.0.2.11"], "backends": [{"address": "10.0.0.2"}]},
            ]
        }
    )
    found = plan(both, host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    prerouting = rules(found, 4, "LOADED-PREROUTING")
    assert prerouting[0] == f"-d 192.0.2.10 -p tcp --dport 80 {queue}"
    assert prerouting[-1] == f"-d 192.0.2.11 {queue}"
    assert rules(found, 4, "LOADED-POSTROUTING")[-2:] == [
        f"-s 10.0.0.1/32 {queue}",
        f"-s 10.0.0.2/32 {queue}",
    ]


def test_listeners_of_all_services_on_one_vip_come_together() -> None:
    backends = [{"address": "10.0.0.1"}]
    both = Config.model_validate(
        {
            "services": [
                {"name": "a", "vips": ["192.0.2.10"], "listen": ["tcp/80"], "backends": backends},
                {"name": "b", "vips": ["192.0.2.10"], "listen": ["tcp/443", "tcp/80"], "backends": backends},
            ]
        }
    )
    prerouting = rules(plan(both, host(), 0, 1), 4, "LOADED-PREROUTING")
    assert [rule.split()[5] for rule in prerouting[:2]] == ["80", "443"]
    assert len(prerouting) == 2 + 3


def test_name_servers_are_never_queued() -> None:
    found = plan(config(name_servers=["9.9.9.9", "2620:fe::fe"]), host(), 0, 1)
    prerouting, postrouting = (rules(found, 4, f"LOADED-{hook}ROUTING") for hook in ("PRE", "POST"))
    assert prerouting[:2] == [f"-s 9.9.9.9 -p {name} --sport 53 -j RETURN" for name in ("udp", "tcp")]
    exempt = [postrouting.index(f"-d 9.9.9.9 -p {name} --dport 53 -j RETURN") for name in ("udp", "tcp")]
    assert max(exempt) < postrouting.index("-s 10.0.0.0/24 -j NFQUEUE --queue-num 0")
    assert not any("2620" in rule for rule in prerouting + postrouting)
    assert "-s 2620:fe::fe -p udp --sport 53 -j RETURN" in rules(found, 6, "LOADED-PREROUTING")


def test_masquerading_spares_all_backend_networks_and_may_be_off() -> None:
    networks = ["10.0.0.0/24", "10.1.0.0/24"]
    assert rules(plan(config(backend_networks=networks), host(), 0, 1), 4, "LOADED-NAT") == [
        "-d 10.0.0.0/24 -j RETURN",
        "-d 10.1.0.0/24 -j RETURN",
        "-s 10.0.0.0/24 -j MASQUERADE",
        "-s 10.1.0.0/24 -j MASQUERADE",
    ]
    off = plan(config(masquerade=False), host(), 0, 1)
    assert not any(isinstance(change, AddChain) and change.name == "LOADED-NAT" for change in off.changes)
    for family in (4, 6):  # the match makes the kernel reassemble fragments
        assert any("-m conntrack" in rule for rule in rules(off, family, "LOADED-POSTROUTING"))


def test_only_families_in_use() -> None:
    found = plan(config({"vips": ["192.0.2.10"]}), host(), 0, 1)
    assert {change.family for change in found.changes if isinstance(change, AddChain)} == {4}
    assert not any("ipv6" in command for command in commands(found))


def test_what_is_there_is_used_as_it_is() -> None:
    prepared = host(
        addresses=(
            ("eth0", "192.0.2.1/24"),
            ("eth0", "192.0.2.10/24"),
            ("lo", "2001:db8::10/128"),
            ("eth1", "10.0.0.254/16"),
            ("eth1", "fd00::ff/64"),
        ),
        sysctls={
            "net/ipv4/ip_forward": "1",
            "net/ipv6/conf/all/forwarding": "1",
            **{f"net/ipv4/conf/{name}/forwarding": "1" for name in ("all", "eth0", "eth1")},
            **{f"net/ipv4/conf/{name}/send_redirects": "0" for name in ("all", "eth0", "eth1")},
        },
    )
    assert commands(plan(config(), prepared, 0, 1)) == []


def test_forwarding_that_is_on_but_not_for_one_interface() -> None:
    found = plan(
        config(), host(sysctls={"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0/forwarding": "1"}), 0, 1
    )
    assert "sysctl -w net.ipv4.conf.eth1.forwarding=1" in commands(found)
    assert "sysctl -w net.ipv4.conf.eth0.forwarding=1" not in commands(found)


def test_what_the_kernel_changes_along_with_forwarding_is_noted() -> None:
    before = host(
        sysctls={
            "net/ipv4/conf/eth1/forwarding": "1",
            "net/ipv4/conf/all/accept_redirects": "0",
            "net/ipv6/conf/eth0/forwarding": "1",
        }
    )
    along = {
        change.path: change.along
        for change in plan(config(), before, 0, 1).changes
        if isinstance(change, SetSysctl) and change.along
    }
    assert along == {
        "net/ipv4/ip_forward": (
            ("net/ipv4/conf/eth1/forwarding", "1"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
        ),
        "net/ipv6/conf/all/forwarding": (("net/ipv6/conf/eth0/forwarding", "1"),),
    }


def test_routes_only_where_nothing_but_the_default_leads_to_the_backends() -> None:
    def routes(*present: str, **network: Any) -> list[str]:
        found = plan(config(private_addresses=[], **network), host(routes=present), 0, 1)
        return [command for command in commands(found) if "route" in command]

    assert routes() == ["ip route add 10.0.0.0/24 dev eth1", "ip route add fd00::/64 dev eth1"]
    assert routes("0.0.0.0/0", "10.0.0.0/25", "::/0") == routes()
    assert routes("10.0.0.0/8", "fd00::/8") == []
    assert routes(backend_networks=[]) == [
        "ip route add 10.0.0.1/32 dev eth1",
        "ip route add fd00::1/128 dev eth1",
    ]
    assert routes(private_interface=None) == []


def test_a_backend_outside_of_the_networks_stands_for_itself() -> None:
    found = plan(config({"backends": [{"address": "10.9.0.1"}, {"address": "10.0.0.1"}]}), host(), 0, 1)
    assert "ip route add 10.9.0.1/32 dev eth1" in commands(found)
    assert "-s 10.9.0.1/32 -j NFQUEUE --queue-num 0" in rules(found, 4, "LOADED-POSTROUTING")


def test_a_backend_on_the_balancer_itself_is_queued() -> None:
    found = plan(config({"backends": [{"address": "10.0.0.254"}]}), host(), 0, 1)
    assert "-s 10.0.0.254 -j RETURN" not in rules(found, 4, "LOADED-POSTROUTING")


def test_one_interface_for_both_sides() -> None:
    found = plan(
        config({"vips": ["192.0.2.10/24"]}, private_interface="eth0", public_addresses=["192.0.2.2/24"]),
        host(links={"eth0": Link(False, 1_500)}, addresses=()),
        0,
        1,
    )
    assert commands(found) == [
        "ip link set dev eth0 up",
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv4.conf.all.send_redirects=0",
        "sysctl -w net.ipv4.conf.eth0.send_redirects=0",
        "ip address add 10.0.0.254/24 dev eth0",
        "ip address add fd00::ff/64 dev eth0 nodad",
        "ip address add 192.0.2.2/24 dev eth0",
        "ip address add 192.0.2.10/24 dev eth0",
    ]


def test_an_address_twice_in_the_configuration_is_added_once() -> None:
    service = {"backends": [{"address": "10.0.0.1"}], "vips": ["192.0.2.10"]}
    twice = Config.model_validate(
        {
            "services": [
                {"name": name, "listen": [f"tcp/{port}"], **service} for name, port in (("a", 1), ("b", 2))
            ],
            "network": {"public_interface": "eth0"},
        }
    )
    found = plan(twice, host(), 0, 1)
    assert [command for command in commands(found) if "address" in command] == [
        "ip address add 192.0.2.10/32 dev eth0"
    ]


def test_without_interfaces_addresses_are_left_alone_and_the_plan_says_so() -> None:
    found = plan(config(public_interface=None, private_interface=None), host(), 0, 1)
    assert not any(isinstance(change, AddAddress) for change in found.changes)
    assert any("no network.public_interface" in note for note in found.notes)
    assert any("network.private_addresses are put nowhere" in note for note in found.notes)
    assert "sysctl -w net.ipv4.conf.eth1.send_redirects=0" in commands(found)


def test_only_a_service_without_listen_is_open() -> None:
    notes = plan(config({"listen": ["tcp/80"]}), host(), 0, 1).notes
    assert notes == (FAST_PATH,)
    without = config({"listen": ["tcp/80"]}).model_copy(update={"fast_path": "off"})
    assert plan(without, host(), 0, 1).notes == ()


def test_masquerading_behind_nothing_but_vips_is_pointed_out() -> None:
    web = {"listen": ["tcp/80"]}
    found = plan(config(web), host(addresses=(("eth0", "192.0.2.10/24"), ("eth0", "fe80::1/64"))), 0, 1)
    assert next(note for note in found.notes if "has only VIPs" in note).startswith(
        "eth0 has only VIPs as IPv4"
    )
    assert len(found.notes) == 3
    own = config(web, public_addresses=["192.0.2.1/24", "2001:db8::1/64"])
    assert plan(own, host(addresses=()), 0, 1).notes == (FAST_PATH,)


def test_broadcast_belongs_to_the_private_address() -> None:
    found = plan(config(broadcast="10.0.0.255"), host(), 0, 1)
    assert "ip address add 10.0.0.254/24 broadcast 10.0.0.255 dev eth1" in commands(found)
    assert "sysctl -w net.ipv4.icmp_echo_ignore_broadcasts=0" in commands(found)
    elsewhere = plan(config(broadcast="10.7.0.255"), host(), 0, 1)
    assert any("10.7.0.255" in note for note in elsewhere.notes)


def test_segments_are_clamped_only_where_packets_do_not_fit_a_message() -> None:
    def clamps(mtu: int, family: int) -> list[str]:
        found = plan(config(), host(links={"eth1": Link(True, mtu)}), 0, 1)
        return [rule for rule in rules(found, family, "LOADED-POSTROUTING") if "TCPMSS" in rule]

    match = "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss"
    assert clamps(65_531, 4) == []
    assert clamps(65_535, 4) == [f"{way} 10.0.0.0/24 {match} 65488" for way in ("-s", "-d")]
    assert clamps(65_535, 6) == [f"{way} fd00::/64 {match} 65468" for way in ("-s", "-d")]


@pytest.mark.parametrize("key", ["public_interface", "private_interface"])
def test_an_interface_that_does_not_exist_is_named_by_its_key(key: str) -> None:
    with pytest.raises(NetworkError, match=f"network.{key}: .*'eth9'.*eth0, eth1, lo"):
        plan(config(None, **{key: "eth9"}), host(), 0, 1)


def test_names_of_interfaces_with_a_dot() -> None:
    before = host(links={"eth0.7": Link(True, 1_500)}, sysctls={"net/ipv4/conf/eth0.7/send_redirects": "1"})
    found = plan(config(private_interface="eth0.7"), before, 0, 1)
    assert "sysctl -w net.ipv4.conf.eth0/7.send_redirects=0" in commands(found)


def test_planning_again_without_what_was_done_gives_the_same_plan() -> None:
    before = host(links={"eth1": Link(False, 1_500)}, routes=("10.5.0.0/16",))
    wanted = config(backend_networks=["10.0.0.0/24", "10.7.0.0/24", "fd00::/64"])
    first = plan(wanted, before, 0, 2)
    after = host(
        addresses=(
            *(("eth0", "192.0.2.1/24"), ("eth0", "2001:db8::1/64")),
            *((each.link, str(each.address)) for each in first.changes if isinstance(each, AddAddress)),
        ),
        routes=("10.5.0.0/16", "10.7.0.0/24"),
        sysctls={
            **{each.path: each.value for each in first.changes if isinstance(each, SetSysctl)},
            **{f"net/ipv4/conf/{name}/forwarding": "1" for name in ("all", "default", "eth0", "eth1")},
            **{f"net/ipv6/conf/{name}/forwarding": "1" for name in ("default", "eth0", "eth1")},
        },
    )
    assert commands(plan(wanted, after, 0, 2)) == []
    for change in first.changes:
        after = change.before(after)
    again = plan(wanted, after, 0, 2)
    assert [change.command for change in again.changes] == [change.command for change in first.changes]


def test_a_chain_is_text_for_iptables_restore() -> None:
    chain = AddChain(
        family=6, table="raw", hook="PREROUTING", name="LOADED-PREROUTING", rules=("-d ::1 -j DROP",), why="-"
    )
    assert chain.text(jump=False) == (
        "*raw\n:LOADED-PREROUTING - [0:0]\n-A LOADED-PREROUTING -d ::1 -j DROP\nCOMMIT\n"
    )
    assert chain.command.startswith("ip6tables-restore --noflush <<END\n*raw\n")
    assert "-I PREROUTING 1 -j LOADED-PREROUTING\nCOMMIT\nEND" in chain.command


def test_the_printed_plan_is_a_script_with_reasons() -> None:
    found = plan(config(public_interface=None), host(), 0, 1)
    lines = found.script().splitlines()
    assert lines[0].startswith("# Note: no network.public_interface")
    at = lines.index("# packets go on to the backends and back")
    assert lines[at + 1] == "sysctl -w net.ipv4.ip_forward=1"
    assert all(change.command in found.script() for change in found.changes)
    assert Plan((), ()).script() == "# Nothing has to be changed."


def test_requests_that_end_here_are_not_tracked() -> None:
    found = plan(config(), host(), 0, 1)
    assert all_rules(found, 4, "LOADED-PREROUTING")[2] == "-d 192.0.2.10 -m ttl --ttl-lt 2 -j CT --notrack"
    assert "-d 2001:db8::10 -m hl --hl-lt 2 -j CT --notrack" in all_rules(found, 6, "LOADED-PREROUTING")
    assert not [rule for rule in all_rules(found, 4, "LOADED-PREROUTING") if "length" in rule]
    narrow = plan(config(), host(links={"eth1": Link(True, 1_300)}), 0, 1)
    wanted = "-d 192.0.2.10 ! -p tcp -m length --length 1301:65535 -j CT --notrack"
    assert wanted in all_rules(narrow, 4, "LOADED-PREROUTING")


def test_what_the_kernel_translates_is_queued_once_and_then_known_by_its_mark() -> None:
    found = plan_with_ids({7: "10.0.0.1"})
    chains = {
        (each.table, each.hook): list(each.rules)
        for each in found.changes
        if isinstance(each, AddChain) and each.family == 4 and each.name != "LOADED-UNMARKED"
    }
    assert chains["nat", "OUTPUT"] == chains["nat", "PREROUTING"]
    assert ("raw", "PREROUTING") not in chains
    assert ("mangle", "PREROUTING") not in chains
    assert chains["nat", "PREROUTING"] == [
        "-m mark --mark 0x4c4d0000/0xffffe000 -j CONNMARK --save-mark",
        "-m mark --mark 0x4c4d0007 -j DNAT --to-destination 10.0.0.1",
        "-d 192.0.2.10 -j NFQUEUE --queue-balance 0:1",
    ]
    assert ("mangle", "POSTROUTING") not in chains
    assert rules(found, 6, "LOADED-POSTROUTING") == ["-p icmpv6 --icmpv6-type 137 -j DROP"]
    assert chains["security", "FORWARD"] == [
        "-d 10.0.0.1 -m connmark --mark 0x4c4d0007 -j RETURN",
        "-s 10.0.0.1 -m connmark --mark 0x4c4d0007 -j RETURN",
    ]


def test_counters_of_many_backends_share_chains_that_only_their_packets_enter() -> None:
    marks = range(0x4C4D0001, 0x4C4D0000 + 1_000)
    found = plan_with_ids({i: f"10.0.{i // 256}.{i % 256}" for i in range(1, 1_000)})
    chains = [each for each in found.changes if isinstance(each, AddChain) and "LOADED-FORWARD" in each.name]
    counted = []
    for chain in chains:
        words = re.fullmatch(r"-m connmark --mark (0x\w+)/(0x\w+)", chain.match)
        assert words
        value, mask = (int(word, 16) for word in words.groups())
        inside = {mark for mark in range(0x4C4D0000, 0x4C4D0400) if mark & mask == value}
        ours = [int(mark, 16) for mark in re.findall(r"--mark (0x\w+) -j RETURN", " ".join(chain.rules))]
        assert set(ours) == inside & set(marks)
        counted += ours
    assert sorted(counted) == sorted([*marks] * 2)
    assert len(chains) + max(len(chain.rules) for chain in chains) < 100


def test_replies_are_known_by_the_ports_of_their_backends() -> None:
    addresses = ("10.0.0.1:8080", "10.0.0.2:8081", "10.0.0.3", "[fd00::1]:8082")
    backends = [{"address": each} for each in addresses]
    found = plan(config({"listen": ["tcp/80", "icmp"], "backends": backends}), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    assert rules(found, 4, "LOADED-POSTROUTING")[-4:] == [
        f"-s 10.0.0.0/24 {match} {queue}"
        for match in ("-p tcp --sport 80", "-p icmp", "-p tcp --sport 8080", "-p tcp --sport 8081")
    ]
    assert rules(found, 6, "LOADED-POSTROUTING")[-3:] == [
        f"-s fd00::/64 {match} {queue}" for match in ("-p tcp --sport 80", "-p icmpv6", "-p tcp --sport 8082")
    ]
    alone = config({"listen": ["tcp/80"], "backends": backends}, backend_networks=[])
    assert rules(plan(alone, host(), 0, 1), 4, "LOADED-POSTROUTING")[-5:] == [
        f"-s 10.0.0.1/32 -p tcp --sport 80 {queue}",
        f"-s 10.0.0.1/32 -p tcp --sport 8080 {queue}",
        f"-s 10.0.0.2/32 -p tcp --sport 80 {queue}",
        f"-s 10.0.0.2/32 -p tcp --sport 8081 {queue}",
        f"-s 10.0.0.3/32 -p tcp --sport 80 {queue}",
    ]


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        (["tcp/80"], ["-p tcp --dport 80 -m mark --mark 0x4c4d0007 -j DNAT --to-destination 10.0.0.1:8080"]),
        (
            ["tcp/5000-5003", "udp/5000-5003", "icmp"],
            [
                "-p tcp --dport 5000:5003 -m mark --mark 0x4c4d0007 -j DNAT"
                " --to-destination 10.0.0.1:8080-8083/5000",
                "-p udp --dport 5000:5003 -m mark --mark 0x4c4d0007 -j DNAT"
                " --to-destination 10.0.0.1:8080-8083/5000",
                "-p icmp -m mark --mark 0x4c4d0007 -j DNAT --to-destination 10.0.0.1",
            ],
        ),
    ],
)
def test_the_kernel_translates_to_the_ports_of_backends(listen: list[str], expected: list[str]) -> None:
    found = plan_with_ids({7: "10.0.0.1:8080", 8: "10.0.0.1"}, listen=listen)
    assert [rule for rule in rules(found, 4, "LOADED-DNAT") if "DNAT" in rule] == [
        *expected,
        "-m mark --mark 0x4c4d0008 -j DNAT --to-destination 10.0.0.1",
    ]


def test_a_network_as_vip_is_one_match_and_a_local_route() -> None:
    service = {"vips": ["192.0.2.16/28", "192.0.2.1/24", "2001:db8::10:0/120"], "listen": ["tcp/80"]}
    found = plan(config(service), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    assert [rule for rule in rules(found, 4, "LOADED-OUTPUT") if "tcp" in rule] == [
        f"-d 192.0.2.16/28 -p tcp --dport 80 {queue}",
        f"-d 192.0.2.1 -p tcp --dport 80 {queue}",
    ]
    assert f"-d 2001:db8::10:0/120 -p tcp --dport 80 {queue}" in rules(found, 6, "LOADED-OUTPUT")
    last = [command for command in commands(found) if " local " in command]
    assert last == [
        "ip route add local 192.0.2.16/28 dev eth0",
        "ip route add local 2001:db8::10:0/120 dev eth0",
    ]
    assert commands(found)[-2:] == last
    assert "VIP 192.0.2.16/28 is 16 VIPs: neighbours find them; have it routed to this host" in found.notes
    assert "VIP 2001:db8::10:0/120 is 256 VIPs: no neighbour finds them; have it routed to this host" in (
        found.notes
    )
    there = replace(host(), local=(ip_network("192.0.2.16/28"),))
    assert len([each for each in commands(plan(config(service), there, 0, 1)) if " local " in each]) == 1
    (route, _) = (each for each in found.changes if isinstance(each, AddLocalRoute))
    assert route.before(there).local == ()
    nowhere = plan(config(service, public_interface=None), host(), 0, 1)
    assert not any(isinstance(each, AddLocalRoute) for each in nowhere.changes)


def test_the_jump_to_what_goes_by_marks_comes_behind_the_rules_that_set_them() -> None:
    found = plan(config({"listen": ["mark/7"]}), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    assert rules(found, 4, "LOADED-OUTPUT")[0] == f"-d 192.0.2.10 -m mark --mark 0x7 {queue}"
    assert rules(found, 4, "LOADED-POSTROUTING")[-1] == f"-s 10.0.0.0/24 {queue}"
    chains = {each.name: each for each in found.changes if isinstance(each, AddChain) and each.family == 4}
    assert [each.name for each in chains.values() if each.last] == ["LOADED-PREROUTING", "LOADED-OUTPUT"]
    jump = "PREROUTING -j LOADED-PREROUTING"
    lines = chains["LOADED-PREROUTING"].text(jump=True).splitlines()
    assert lines[-2:] == [f"-A {jump}", "COMMIT"]
    lines = chains["LOADED-PREROUTING"].text(jump=False).splitlines()
    assert lines[-3:] == [f"-D {jump}", f"-A {jump}", "COMMIT"]


def test_what_is_sent_directly_passes_the_rules_once_more_with_its_mark() -> None:
    found = plan_with_ids({7: "10.0.0.1", 40: "10.0.0.2"}, forwarding="dr")
    decided = "-m mark --mark 0x4c4d0000/0xffffe000 -j RETURN"
    queue = "-j NFQUEUE --queue-balance 0:1"
    requests = ["-i lo -j RETURN", decided, *misplaced("10.0.0.0/24", queue), f"-d 192.0.2.10 {queue}"]
    assert rules(found, 4, "LOADED-DR") == requests
    assert rules(found, 4, "LOADED-DR-0") == [
        "-i lo -j RETURN",
        "-m ttl --ttl-lt 2 -j DROP",
        "-m mark --mark 0x4c4d0007 -j TEE --gateway 10.0.0.1",
        "-m mark --mark 0x4c4d0007 -j DROP",
    ]
    matches = {each.name: each.match for each in found.changes if isinstance(each, AddChain)}
    first = {each.name for each in found.changes if isinstance(each, AddChain) and each.first}
    assert first == {"LOADED-DR-0", "LOADED-DR-1"}
    assert matches["LOADED-DR-0"] == "-m mark --mark 0x4c4d0000/0xffffffe0"
    assert matches["LOADED-DR-1"] == "-m mark --mark 0x4c4d0020/0xffffffe0"
    assert "-m mark --mark 0x4c4d0028 -j TEE --gateway 10.0.0.2" in rules(found, 4, "LOADED-DR-1")
    assert rules(found, 4, "LOADED-DR-REPLIES")[:5] == [decided, *marked(queue)]
    assert not rules(found, 4, "LOADED-PREROUTING")


@pytest.mark.parametrize("other", ["dr", "conntrack"])
def test_workers_rewrite_nothing_that_another_way_goes_on_with(other: str) -> None:
    wanted = config()
    (web,) = wanted.services
    more = web.model_copy(update={"name": "more", "forwarding": other, "listen": ()})
    found = plan(wanted.model_copy(update={"services": (web, more)}), host(), 0, 1)
    decided = "-m mark --mark 0x4c4d0000/0xffffe000 -j RETURN"
    for chain in ("LOADED-PREROUTING", "LOADED-OUTPUT"):
        assert rules(found, 4, chain)[-2:] == [decided, "-d 192.0.2.10 -j NFQUEUE --queue-num 0"]


def test_a_backend_behind_a_gateway_cannot_be_sent_to_directly() -> None:
    for more, routes, gateways, by_gateway in (
        ({}, (), ("0.0.0.0/0",), False),
        ({}, ("10.0.0.0/25",), ("0.0.0.0/0", "10.0.0.0/25"), True),
        ({"private_interface": None}, (), ("0.0.0.0/0",), True),
        ({"private_interface": None}, ("10.0.0.0/24",), ("0.0.0.0/0",), False),
        ({"private_interface": None}, ("10.0.0.0/24",), ("0.0.0.0/0", "10.0.0.0/24"), True),
        ({"private_interface": None}, (), (), False),
    ):
        here = host(routes=routes, gateways=gateways)
        plan(config(**more), here, 0, 1)
        if by_gateway:
            with pytest.raises(NetworkError, match=r'web: backend 10\.0\.0\.1 .*forwarding = "dr"'):
                plan(config({"forwarding": "dr"}, **more), here, 0, 1)
        else:
            plan(config({"forwarding": "dr"}, **more), here, 0, 1)


def test_what_tunnels_carry_is_not_tracked_and_errors_about_it_come_to_workers() -> None:
    found = plan(config({"forwarding": "tunnel", "tunnel": {"sources": ["10.9.0.0/16"]}}), host(), 0, 1)
    queue = "-j NFQUEUE --queue-num 0"
    carried = "-m mark --mark 0x4c500000"
    errors = [
        *(
            f"-d 10.9.0.0/16 -p icmp --icmp-type {name} -j MARK --set-mark 0x4c500000"
            for name in ("destination-unreachable", "time-exceeded", "parameter-problem")
        ),
        f"{carried} -j CT --notrack",
        f"{carried} {queue}",
    ]
    assert all_rules(found, 4, "LOADED-TUNNEL-ERRORS") == errors
    assert all_rules(found, 4, "LOADED-TUNNEL") == [
        "-i lo -j RETURN",
        f"{carried} -j CT --notrack",
        f"{carried} -j RETURN",
        *errors,
        *misplaced("10.0.0.0/24", queue),
        "-d 192.0.2.10 -m ttl --ttl-eq 0 -j DROP",
        f"-d 192.0.2.10 {queue}",
    ]
    assert all_rules(found, 4, "LOADED-TUNNEL-REPLIES")[:4] == marked(queue)
    assert not any("icmp-type destination" in each for each in all_rules(found, 4, "LOADED-TUNNEL-REPLIES"))
    assert "ip route add 10.9.0.0/16 dev eth0" in commands(found)
    assert "ip route add 100::/64 dev eth0" in commands(found)
    assert not any("10.9" in each for each in commands(plan(config(), host(), 0, 1)))


@pytest.mark.parametrize("own", ["192.0.2.0/24", "10.0.0.254/32", "2001:db8::/64"])
def test_a_tunnels_packets_come_from_nobody(own: str) -> None:
    with pytest.raises(NetworkError, match=rf"tunnel\.sources: {own} holds"):
        plan(config({"forwarding": "tunnel", "tunnel": {"sources": [own]}}), host(), 0, 1)


@pytest.mark.parametrize("family", [4, 6])
def test_without_the_fast_path_no_rule_is_for_it(family: int) -> None:
    found = plan(config().model_copy(update={"fast_path": "off"}), host(), 3, 4)
    assert rules(found, family, "LOADED-POSTROUTING")[:4] == marked("-j NFQUEUE --queue-balance 3:6")
    assert not set(FORWARDED) & set(all_rules(found, family, "LOADED-PREROUTING"))


def test_replies_are_queued_elsewhere_before_a_chain_that_queued_them_changes() -> None:
    chains = [
        each.name
        for each in plan(config({"forwarding": "conntrack"}), host(), 0, 1).changes
        if isinstance(each, AddChain) and each.family == 6
    ]
    assert chains.index("LOADED-UNMARKED") < chains.index("LOADED-POSTROUTING")


def test_what_is_redirected_is_said() -> None:
    redirecting = config().model_copy(update={"fast_path": "redirect"})
    assert any("pass no FORWARD rules" in note for note in plan(redirecting, host(), 0, 1).notes)
    assert not any("FORWARD" in note for note in plan(config(), host(), 0, 1).notes)


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ({"listen": ["tcp/80"]}, ""),
        ({"listen": ["tcp", "udp/53"]}, ""),
        ({"listen": ["tcp/80"], "forwarding": "conntrack"}, ""),
        ({}, "its backends may begin something over UDP"),
        ({"listen": ["udp/1000-40000"]}, "its backends may begin something over UDP"),
        ({"listen": ["tcp/80"], "vips": ["192.0.2.10", "192.0.2.11", "2001:db8::10"]}, "it has several VIPs"),
    ],
)
def test_what_is_not_redirected_is_said(service: dict[str, Any], why: str) -> None:
    redirecting = config(service).model_copy(update={"fast_path": "redirect"})
    said = [each for each in plan(redirecting, host(), 0, 1).notes if each.startswith("service web goes")]
    assert len(said) == bool(why)
    assert all(why in each for each in said)


def test_redirects_want_backends_apart_from_clients() -> None:
    near = config().model_copy(update={"fast_path": "redirect"})
    there = replace(host(), addresses=(*host().addresses, ("eth0", ip_interface("10.0.0.1/8"))))
    plan(config(), there, 0, 1)
    with pytest.raises(NetworkError, match=r"backend 10\.0\.0\.1 is on the link of eth0"):
        plan(near, there, 0, 1)
