"""What others do to the network set-up while the daemon runs: put back, said, counted."""

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIP4, VIP6, VIPS, Lab, Options
from loaded_mp.lab.namespace import connect
from loaded_mp.lab.wait import wait_until

VARIANTS = ("nft", "legacy")

#: `nft flush ruleset` for machines without nft: one transaction that deletes all tables of all families.
FLUSH_RULESET = """
import socket, struct
def message(kind, flags, subsystem, resource):
    return struct.pack("=IHHIIBBH", 20, kind, flags, 1, 0, 0, 0, socket.htons(resource))
begin, delete, end = message(0x10, 1, 0, 10), message(0xA02, 1, 0, 0), message(0x11, 1, 0, 10)
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
    netfilter.bind((0, 0))
    netfilter.send(begin + delete + end)
"""


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LOADED_MP_IPTABLES", request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=3)) as lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab, variant: str) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config(workers=1))
    yield daemon
    daemon.stop()
    # What was not its own it has left.
    assert "LOADED" not in lab.balancer.run("ip6tables-save").stdout


def rules(lab: Lab, variant: str) -> list[str]:
    return [
        line
        for tool in ("iptables", "ip6tables")
        for line in lab.balancer.run(f"{tool}-{variant}-save").stdout.splitlines()
        if "LOADED" in line and line.startswith("-A")
    ]


def addresses(lab: Lab) -> list[str]:
    words = lab.balancer.run("ip", "-o", "address", "show", "scope", "global").stdout.splitlines()
    return sorted(" ".join(line.split()[1:4]) for line in words)


def state(lab: Lab, variant: str) -> list[str]:
    forwarding = lab.balancer.run("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding").stdout
    return [*rules(lab, variant), *addresses(lab), forwarding]


def mended(lab: Lab, daemon: Daemon, variant: str, harm: Callable[[], object]) -> str:
    """Do harm, and wait until all is as before; the log's lines about it."""
    before, said = state(lab, variant), len(daemon.log)
    harm()
    harmed_s = time.monotonic()
    wait_until(lambda: "event=drift-mended" in daemon.log[said:], f"a mend in the log:\n{daemon.log}")
    print(f"mended after {time.monotonic() - harmed_s:.2f} s", file=sys.stderr)
    wait_until(lambda: state(lab, variant) == before, f"as before: {before}\n{daemon.log}")
    for vip in VIPS:
        assert not [
            name
            for names in lab.answers("http", vip, 1, lab.sources(vip)).values()
            for name in names
            if name.startswith("error")
        ]
    return daemon.log[said:]


def test_flushed_rules(lab: Lab, daemon: Daemon, variant: str) -> None:
    def flush() -> None:
        for tool in ("iptables", "ip6tables"):
            for table in ("raw", "mangle", "nat"):
                lab.balancer.run(f"{tool}-{variant}", "-t", table, "-F")

    assert "rules of LOADED-PREROUTING in iptables" in mended(lab, daemon, variant, flush)


def test_everything_flushed_in_conntrack_mode(lab: Lab, variant: str) -> None:
    daemon = lab.daemon(lab.config(workers=1, service='forwarding = "conntrack"'))

    def flush() -> None:
        for tool in ("iptables", "ip6tables"):
            for table in ("nat", "security", "mangle", "raw"):
                lab.balancer.run(f"{tool}-{variant}", "-t", table, "-F")
                lab.balancer.run(f"{tool}-{variant}", "-t", table, "-X")

    try:
        mended(lab, daemon, variant, flush)
    finally:
        daemon.stop()
    assert "event=drift-stays" not in daemon.log


def test_a_jump_that_was_deleted(lab: Lab, daemon: Daemon, variant: str) -> None:
    words = (f"ip6tables-{variant}", "-t", "mangle", "-D", "POSTROUTING", "-j", "LOADED-POSTROUTING")
    said = mended(lab, daemon, variant, lambda: lab.balancer.run(*words))
    assert f'missing="jump to LOADED-POSTROUTING in ip6tables-{variant} mangle"' in said


def test_a_rule_that_was_replaced(lab: Lab, daemon: Daemon, variant: str) -> None:
    command = f"iptables-{variant} -t raw -R LOADED-PREROUTING 1 -p tcp -m ttl --ttl-eq 9 -j DROP"
    said = mended(lab, daemon, variant, lambda: lab.balancer.run(*command.split()))
    assert f'missing="rules of LOADED-PREROUTING in iptables-{variant} raw"' in said


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_nft_flush_ruleset(lab: Lab, daemon: Daemon, variant: str) -> None:
    said = mended(lab, daemon, variant, lambda: lab.balancer.run(sys.executable, "-c", FLUSH_RULESET))
    assert said.count("event=drift-mended") == 1


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
@pytest.mark.parametrize("setting", ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"])
def test_forwarding_switched_off(lab: Lab, daemon: Daemon, variant: str, setting: str) -> None:
    said = mended(lab, daemon, variant, lambda: lab.balancer.sysctl(setting, 0))
    assert setting.replace("/", ".") + "=1" in said


def test_what_was_as_needed_before_the_start_is_watched_too_and_left_as_it_was() -> None:
    with Lab(Options(sources=1, gateway=True)) as lab:
        daemon = lab.daemon(lab.config(workers=1))
        mended(lab, daemon, "nft", lambda: lab.balancer.sysctl("net/ipv4/ip_forward", 0))
        lab.balancer.ip("address delete 10.0.0.254/24 dev private")
        daemon.stop()
        assert "10.0.0.254" not in " ".join(addresses(lab))  # an address of others: theirs to take away
        assert lab.balancer.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "1"


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
@pytest.mark.parametrize("vip", [f"{VIP4}/32", f"{VIP6}/128"])
def test_a_vip_that_was_deleted(lab: Lab, daemon: Daemon, variant: str, vip: str) -> None:
    said = mended(lab, daemon, variant, lambda: lab.balancer.ip(f"address delete {vip} dev public"))
    assert f'missing="address {vip} on public"' in said


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_links_down_and_up(lab: Lab, daemon: Daemon, variant: str) -> None:
    def down_and_up() -> None:
        lab.balancer.ip("link set public down", "link set private down")
        daemon.logged("event=interface-away interface=public")
        lab.balancer.ip(
            "link set public up",
            "link set private up",
            "address add 2001:db8:1::ffff/64 dev public nodad",
        )

    said = mended(lab, daemon, variant, down_and_up)
    assert f"address {VIP6}/128 on public" in said
    assert "address fd00::fe/64 on private" in said
    assert said.count("event=interface-away interface=public") == 1


@pytest.mark.long
@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_a_fight_is_said_once(lab: Lab, daemon: Daemon, variant: str) -> None:
    def mends() -> int:
        return daemon.log.count("event=drift-mended")

    def taken_away_again() -> bool:
        lab.balancer.run("ip", "address", "delete", f"{VIP4}/32", "dev", "public", check=False)
        return "event=drift-fight" in daemon.log

    wait_until(taken_away_again, "a fight", 30)
    assert mends() == 10
    for _ in range(3):
        wait_until(lambda: f"{VIP4}/32" in " ".join(addresses(lab)), "the VIP is back")
        taken_away_again()
    assert mends() == 10
    assert daemon.log.count("event=drift-fight") == 1


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_an_interface_that_was_deleted_and_made_again(lab: Lab, daemon: Daemon, variant: str) -> None:
    def delete_and_make() -> None:
        lab.balancer.ip("link delete private")
        daemon.logged("event=interface-away interface=private")
        connect(lab.balancer, "private", lab.switch, "to-balancer")
        lab.switch.ip("link set to-balancer master bridge")

    said = mended(lab, daemon, variant, delete_and_make)
    assert "address 10.0.0.254/24 on private" in said
    assert "address fd00::fe/64 on private" in said
    assert "net.ipv4.conf.private.send_redirects=0" in said
    daemon.logged("event=interface-back interface=private")


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_rules_are_put_back_while_an_interface_is_away(lab: Lab, daemon: Daemon, variant: str) -> None:
    def harm() -> None:
        lab.balancer.ip("link set private down")
        daemon.logged("event=interface-away interface=private")
        before = rules(lab, variant)
        lab.balancer.run(sys.executable, "-c", FLUSH_RULESET)
        wait_until(lambda: rules(lab, variant) == before, "the rules are back")
        lab.balancer.ip("link set private up")

    assert "event=drift-stays" not in mended(lab, daemon, variant, harm)


@pytest.mark.long
def test_a_vip_that_has_come_to_be_here_is_announced() -> None:
    from scapy.all import ARP, ICMPv6ND_NA, rdpcap  # noqa: PLC0415

    def announced() -> tuple[int, int]:
        packets = rdpcap(str(path))
        advertisements = [each[ICMPv6ND_NA] for each in packets if ICMPv6ND_NA in each]
        return (
            sum(each[ARP].psrc == each[ARP].pdst == VIP4 for each in packets if ARP in each),
            sum(each.tgt == VIP6 and each.O for each in advertisements),
        )

    with Lab(Options(sources=1)) as lab, lab.capture(lab.client, "eth0", "arp or icmp6") as path:
        daemon = lab.daemon(lab.config(workers=1))
        wait_until(lambda: announced() == (3, 3), "three announcements after the start")
        lab.balancer.ip(f"address delete {VIP4}/32 dev public")
        wait_until(lambda: announced() == (6, 3), "three announcements of the VIP that was put back")
        lab.client.ip("link set eth0 down", "link set eth0 up")
        # tcpdump ends with its interface; that frames are sent is shown above.
        wait_until(
            lambda: daemon.log.count("event=vip-announced") == 5, "both once more with the new carrier"
        )
        daemon.stop()


#: Another watch beside the daemon's, by itself, so that its share of a core can be told.
WATCH = """
import asyncio, sys, time
from loaded_mp.network.record import read_record
from loaded_mp.supervisor.drift import Drift

async def main():
    watch = asyncio.create_task(Drift(read_record().changes).run())
    await asyncio.sleep(1)
    before_s = time.process_time()
    await asyncio.sleep(float(sys.argv[1]))
    print(time.process_time() - before_s)
    watch.cancel()

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.usefixtures("daemon")
def test_watching_costs_next_to_nothing(lab: Lab, variant: str) -> None:
    watched_s = 5
    share = float(lab.balancer.run(sys.executable, "-c", WATCH, str(watched_s)).stdout) / watched_s
    print(f"{variant}: {share:.3%} of a core", file=sys.stderr)
    assert share < 0.0015  # 0.07 % where nothing else runs
