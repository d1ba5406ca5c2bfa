"""Network set-up on a real kernel: everything in place, and everything as before afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from loaded_mp.lab.namespace import Namespace, connect, new_prefix, remove_leftovers
from loaded_mp.lab.wait import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

#: What the balancer's code starts with: all that these tests use of loaded-mp.
_PREAMBLE = """
import os, signal
from loaded_mp.cli import cleanup as cleaning
from loaded_mp.config.model import Config
from loaded_mp.control.server import control_socket
from loaded_mp.network import iptables, setup
from loaded_mp.network.setup import left_over, take_down
from loaded_mp.plan import plan
from loaded_mp.services import services_of

def config_from(text):
    return Config.model_validate_json(text)

def planned(config, first, workers):
    config = config.model_copy(update={"first_queue": first, "workers": workers})
    return plan(services_of(config), setup.read_host())

def change(config, first, workers):
    setup.change(planned(config, first, workers).changes)

def set_up(config, first, workers):
    take_down()
    change(config, first, workers)

def crash():
    os.kill(os.getpid(), signal.SIGKILL)

def crash_after(share):
    '''Let what follows end this process once that share of all changes is made.'''
    real, left = setup._apply, int(share * len(planned(config, 0, 4).changes))
    def apply(each):
        nonlocal left
        if not left:
            crash()
        left -= 1
        real(each)
    setup._apply = apply

def put_chains_without_record(config, first, workers):
    for each in planned(config, first, workers).changes:
        if each.kind == "chain":
            iptables.apply(each)

def cleanup():
    cleaning.command([])

def running():
    return control_socket()
"""

#: Imports once, as that takes longest, and goes on in a fork with each piece of code that it is given, in a
#: namespace; prints the status of each. What is frozen need not be taken apart when a fork ends.
_FORKS = """
import gc, json, os, sys
from ctypes import CDLL
gc.freeze()
for line in sys.stdin:
    namespace, variant, folder, code, text = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.environ["LOADED_MP_IPTABLES"] = variant
assert CDLL(None).setns(os.open(f"/run/netns/{namespace}", os.O_RDONLY), 0) == 0
for descriptor, path in enumerate(("/dev/null", f"{folder}/output", f"{folder}/errors")):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
config = config_from(text)
exec(code)
"""

CONFIG: dict[str, Any] = {
    "services": [
        {
            "name": "web",
            "vips": ["192.0.2.10", "2001:db8::10"],
            "listen": ["tcp/80", "udp/5000-5010"],
            "backends": [{"address": "10.0.0.1"}, {"address": "fd00::1"}],
        }
    ],
    "network": {
        "public_interface": "eth0",
        "private_interface": "eth1",
        "private_addresses": ["10.0.0.254/24", "fd00::ff/64"],
        "backend_networks": ["10.0.0.0/24", "fd00::/64", "10.7.0.0/16", "fd07::/64"],
        "name_servers": ["9.9.9.9"],
        "broadcast": "10.0.0.255",
    },
}


class Balancer:
    """A namespace with eth0 to a client's namespace, and eth1, which is down and leads nowhere."""

    def __init__(self, variant: str, forks: subprocess.Popen[str], stack: ExitStack) -> None:
        self.variant = variant
        self._forks = forks
        self._folder = Path(stack.enter_context(TemporaryDirectory()))
        prefix = new_prefix()
        self.namespace = Namespace(f"{prefix}balancer")
        stack.callback(self.namespace.remove)
        inode = os.stat(f"/run/netns/{self.namespace.name}").st_ino
        self.record = Path(f"/run/loaded-mp/{inode}.json")
        stack.callback(self.record.unlink, missing_ok=True)
        self.client = Namespace(f"{prefix}client")
        stack.callback(self.client.remove)
        connect(self.namespace, "eth0", self.client, "eth0")
        self.namespace.ip(
            "link add eth1 type veth peer name eth9",
            "link set eth9 up",
            "address add 192.0.2.1/24 dev eth0",
            "address add 2001:db8::1/64 dev eth0 nodad",
            "route add 198.51.100.0/24 via 192.0.2.9",
        )
        self.client.ip("address add 192.0.2.2/24 dev eth0", "address add 2001:db8::2/64 dev eth0 nodad")

    def ip(self, words: str) -> str:
        return self.run("ip", *words.split())

    def run(self, *command: str) -> str:
        return self.namespace.run(*command).stdout

    def python(self, code: str, config: dict[str, Any] = CONFIG) -> subprocess.CompletedProcess[str]:
        assert self._forks.stdin
        assert self._forks.stdout
        task = (self.namespace.name, self.variant, str(self._folder), code, json.dumps(config))
        print(json.dumps(task), file=self._forks.stdin, flush=True)
        status = int(self._forks.stdout.readline())
        output, errors = ((self._folder / name).read_text() for name in ("output", "errors"))
        return subprocess.CompletedProcess(code, status, output, errors)

    def done(self, code: str, config: dict[str, Any] = CONFIG) -> str:
        finished = self.python(code, config)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def rules(self, tool: str, *options: str) -> list[str]:
        """Rules and own chains; whether a table exists and what its counters say is left out."""
        lines = self.run(f"{tool}-{self.variant}-save", *options).splitlines()
        return [line for line in lines if "-A " in line or (line.startswith(":") and " - " in line)]

    def addresses(self) -> list[str]:
        return [
            f"{link['ifname']} {'UP' in link['flags']} {each['local']}/{each['prefixlen']}"
            f" {each.get('broadcast', '')} {each.get('deprecated', '')}"
            for link in json.loads(self.ip("-json address"))
            for each in [*link["addr_info"], {"local": "", "prefixlen": ""}]
            if not each["local"].startswith("fe80")
        ]

    def routes(self) -> list[str]:
        return [
            line
            for family in ("-4", "-6")
            for line in self.ip(f"{family} route show table main").splitlines()
            if not line.startswith("fe80")
        ]

    def sysctls(self) -> list[str]:
        found = self.run("sysctl", "--all", "--ignore", "--pattern", r"^net\.ipv[46]\.(conf|ip_forward|icmp)")
        return found.splitlines()

    def everything(self) -> dict[str, list[str]]:
        return {
            "addresses": self.addresses(),
            "routes": self.routes(),
            "sysctls": self.sysctls(),
            "iptables": self.rules("iptables"),
            "ip6tables": self.rules("ip6tables"),
        }


def with_network(**changes: Any) -> dict[str, Any]:
    return CONFIG | {"network": CONFIG["network"] | changes}


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    words = (sys.executable, "-W", "error", "-c", _PREAMBLE + _FORKS)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forks:
        yield forks


@pytest.fixture(params=["nft", "legacy"])
def balancer(request: pytest.FixtureRequest, forks: subprocess.Popen[str]) -> Iterator[Balancer]:
    remove_leftovers()
    with ExitStack() as stack:
        yield Balancer(request.param, forks, stack)


def test_set_up_and_take_down_leave_the_host_as_it_was(balancer: Balancer) -> None:
    before = balancer.everything()
    balancer.done("assert not left_over(); set_up(config, 0, 4); assert left_over()")
    addresses = balancer.addresses()
    assert "eth0 True 192.0.2.10/32  " in addresses
    assert "eth0 True 2001:db8::10/128  True" in addresses
    assert "eth1 True 10.0.0.254/24 10.0.0.255 " in addresses
    assert "eth1 True fd00::ff/64  " in addresses
    routes = balancer.routes()
    assert any(re.match(r"10\.7\.0\.0/16 dev eth1 scope link", route) for route in routes)
    assert any(route.startswith("fd07::/64 dev eth1") for route in routes)
    sysctls = balancer.sysctls()
    for line in (
        "net.ipv4.ip_forward = 1",
        "net.ipv4.conf.all.send_redirects = 0",
        "net.ipv4.conf.eth1.send_redirects = 0",
        "net.ipv4.icmp_echo_ignore_broadcasts = 0",
        "net.ipv6.conf.all.forwarding = 1",
        "net.ipv6.conf.eth0.accept_ra = 2",
    ):
        assert line in sysctls
    for tool in ("iptables", "ip6tables"):
        rules = balancer.rules(tool)
        assert rules.count("-A PREROUTING -j LOADED-PREROUTING") == 1
        assert rules.count("-A POSTROUTING -j LOADED-POSTROUTING") == 1
        assert rules.count("-A POSTROUTING -j LOADED-NAT") == 1
        assert sum("NFQUEUE --queue-balance 0:3" in rule for rule in rules) > 5
    balancer.done("take_down(); assert not left_over(); take_down()")
    assert balancer.everything() == before


def test_a_vip_is_never_the_source_of_what_the_host_or_a_backend_starts(balancer: Balancer) -> None:
    """Not even for a neighbour of the VIP; MASQUERADE chooses as the kernel's routing does."""
    balancer.done("set_up(config, 0, 4)")
    assert "src 192.0.2.1 " in balancer.ip("route get 192.0.2.11")
    assert "src 2001:db8::1 " in balancer.ip("route get 2001:db8::11")
    balancer.done("take_down()")


def test_setting_up_what_the_plan_printed_by_hand_gives_the_same(balancer: Balancer) -> None:
    """Every printed command is a real one and does what the plan does."""
    script = balancer.done("print(planned(config, 0, 4).script())")
    balancer.done("set_up(config, 0, 4)")
    by_us = balancer.everything()
    balancer.done("take_down()")
    script = re.sub(r"^(ip6?tables)-restore", rf"\1-{balancer.variant}-restore", script, flags=re.MULTILINE)
    balancer.run("sh", "-ec", script)
    assert balancer.everything() == by_us


def test_what_was_there_stays(balancer: Balancer) -> None:
    for words in (
        "link set eth1 up",
        "address add 192.0.2.10/24 dev eth0",
        "address add fd00::ff/64 dev eth1 nodad",
        "route add 10.0.0.0/8 dev eth1 metric 77 mtu 1400",
    ):
        balancer.ip(words)
    balancer.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)")
    assert not any("10.7.0.0" in route for route in balancer.routes())
    assert "net.ipv6.conf.eth0.accept_ra = 1" in balancer.sysctls()
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_settings_that_the_kernel_changes_along_come_back(balancer: Balancer) -> None:
    balancer.run("sysctl", "-qw", "net.ipv4.conf.eth9.forwarding=1", "net.ipv4.conf.all.accept_redirects=0")
    balancer.run("sysctl", "-qw", "net.ipv6.conf.eth9.forwarding=1")
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)")
    assert balancer.sysctls() != before["sysctls"]
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_rules_of_others_are_not_touched(balancer: Balancer) -> None:
    for tool, table, rule in (
        ("iptables", "raw", "PREROUTING -d 198.51.100.7/32 -j ACCEPT"),
        ("iptables", "mangle", "POSTROUTING -j OTHERS"),
        ("ip6tables", "nat", "POSTROUTING -s fd99::/64 -j MASQUERADE"),
        ("ip6tables", "filter", "FORWARD -d 2001:db8:7::/64 -j DROP"),
    ):
        command = f"{tool}-{balancer.variant}"
        if "OTHERS" in rule:
            balancer.run(command, "-t", table, "-N", "OTHERS")
            balancer.run(command, "-t", table, "-A", "OTHERS", "-p", "udp", "-j", "RETURN")
        balancer.run(command, "-t", table, "-A", *rule.split())
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4); change(config, 0, 2)")
    for tool in ("iptables", "ip6tables"):
        rules = balancer.rules(tool)
        assert [rule for rule in rules if "LOADED" not in rule] == before[tool]
        for hook in ("PREROUTING", "POSTROUTING"):
            first = next(
                rule
                for rule in balancer.rules(tool, "-t", "raw" if hook == "PREROUTING" else "mangle")
                if rule.startswith(f"-A {hook} ")
            )
            assert first == f"-A {hook} -j LOADED-{hook}"
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_a_chain_that_lost_its_record_is_taken_over(balancer: Balancer) -> None:
    before = balancer.everything()
    for _ in range(2):
        balancer.done("put_chains_without_record(config, 0, 1)")
    balancer.done("set_up(config, 0, 4)")
    rules = balancer.rules("iptables")
    assert rules.count("-A PREROUTING -j LOADED-PREROUTING") == 1
    assert not any("--queue-num 0" in rule for rule in rules)
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_after_a_crash_everything_is_found_and_taken_back(balancer: Balancer) -> None:
    before = balancer.everything()
    crashed = balancer.python("set_up(config, 0, 4); crash()")
    assert crashed.returncode == -signal.SIGKILL
    assert balancer.everything() != before
    assert "as it was" in balancer.done("cleanup()")
    assert balancer.everything() == before
    assert "Nothing" in balancer.done("cleanup()")


def test_cleanup_leaves_a_running_daemon_alone(balancer: Balancer) -> None:
    refused = balancer.python("set_up(config, 0, 4)\nwith running(): cleanup()")
    assert refused.returncode == 1
    assert "another loaded-mp runs" in refused.stderr
    balancer.done("assert left_over(); take_down()")


@pytest.mark.parametrize("share_made", [0, 0.15, 0.5, 0.7, 0.85, 0.99])
def test_a_crash_in_the_middle_of_set_up(balancer: Balancer, share_made: float) -> None:
    before = balancer.everything()
    crashed = balancer.python(f"crash_after({share_made}); set_up(config, 0, 4)")
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    balancer.done("assert left_over(); set_up(config, 0, 1); take_down()")
    assert balancer.everything() == before


def test_the_record_of_a_namespace_that_is_gone_is_not_believed(balancer: Balancer) -> None:
    """Inodes of namespaces are used again, and the new one may have the same address for good."""
    balancer.done("set_up(config, 0, 4)")
    text = balancer.record.read_text()
    balancer.record.write_text(text.replace('"namespace": "', '"namespace": "other-'))
    before = balancer.everything()
    balancer.done("assert not left_over(); take_down()")
    assert balancer.everything() == before


def test_a_set_up_that_fails_takes_back_what_it_had_done(balancer: Balancer) -> None:
    balancer.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
    before = balancer.everything()
    failed = balancer.python("set_up(config, 0, 4)")
    assert failed.returncode == 1
    message = failed.stderr.splitlines()[-1]
    assert "ip address add 2001:db8::10/128 dev eth0 nodad preferred_lft 0: Permission denied" in message
    assert "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0" in message
    balancer.done("assert not left_over()")
    assert balancer.everything() == before


def test_an_interface_that_does_not_exist(balancer: Balancer) -> None:
    before = balancer.everything()
    failed = balancer.python("set_up(config, 0, 4)", with_network(public_interface="eth7"))
    assert "network.public_interface: this host has no interface 'eth7'" in failed.stderr
    assert balancer.everything() == before


def test_what_is_gone_already_does_not_stop_the_rest(balancer: Balancer) -> None:
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)")
    balancer.ip("address delete 192.0.2.10/32 dev eth0")
    balancer.ip("route delete 10.7.0.0/16 dev eth1")
    balancer.run(f"iptables-{balancer.variant}", "-t", "raw", "-F")
    balancer.run(f"iptables-{balancer.variant}", "-t", "raw", "-X")
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_an_interface_that_went_away_does_not_stop_the_rest(balancer: Balancer) -> None:
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)")
    balancer.ip("link delete eth1")
    balancer.done("take_down(); assert not left_over()")
    after = balancer.everything()
    assert after["iptables"] == before["iptables"]
    assert after["addresses"] == [
        line for line in before["addresses"] if not line.startswith(("eth1", "eth9"))
    ]


def test_a_reload_adds_and_removes_only_what_differs(balancer: Balancer) -> None:
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)")
    service = CONFIG["services"][0] | {"vips": ["192.0.2.11/24", "2001:db8::10"], "listen": []}
    other = with_network(masquerade=False, private_addresses=["10.0.0.253/24", "fd00::ff/64"], broadcast=None)
    other["services"] = [service]
    balancer.done("change(config, 4, 2)", other)
    reloaded = balancer.everything()
    assert "eth0 True 192.0.2.11/24  " in reloaded["addresses"]
    assert "eth1 True 10.0.0.253/24  " in reloaded["addresses"]
    assert not any("192.0.2.10/" in line or "10.0.0.254/" in line for line in reloaded["addresses"])
    assert "net.ipv4.icmp_echo_ignore_broadcasts = 1" in reloaded["sysctls"]
    assert "-A LOADED-PREROUTING -d 192.0.2.11/32 -j NFQUEUE --queue-balance 4:5" in reloaded["iptables"]
    assert not any("LOADED-NAT" in rule or "0:3" in rule for rule in reloaded["iptables"])
    assert reloaded["iptables"].count("-A PREROUTING -j LOADED-PREROUTING") == 1
    balancer.done("take_down(); set_up(config, 4, 2)", other)
    assert balancer.everything() == reloaded, "a reload gives what a fresh start gives"
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_a_reload_that_fails_leaves_the_host_as_it_was(balancer: Balancer) -> None:
    before = balancer.everything()
    balancer.done("set_up(config, 0, 4)", with_network(public_interface="eth9"))
    running = balancer.everything()
    balancer.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
    failed = balancer.python("change(config, 0, 4)")
    assert "Permission denied" in failed.stderr
    balancer.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
    balancer.ip("address add 2001:db8::1/64 dev eth0 nodad")
    assert balancer.everything() == running
    balancer.done("take_down()")
    assert balancer.everything() == before


def test_the_kernel_reassembles_fragments_before_the_queue(balancer: Balancer) -> None:
    """Counted by the queue rules, although nobody has bound the queues."""
    balancer.done("set_up(config, 0, 4)", with_network(masquerade=False))
    for vip, tool, headers in (("192.0.2.10", "iptables", 28), ("2001:db8::10", "ip6tables", 48)):
        balancer.client.run(
            sys.executable,
            "-c",
            "import socket, sys\n"
            "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
            "with socket.socket(family, socket.SOCK_DGRAM) as s: s.sendto(bytes(4000), (sys.argv[1], 5000))",
            vip,
        )
        wanted = f"[1:{4000 + headers}] -A LOADED-PREROUTING"

        def counted(tool: str = tool, wanted: str = wanted) -> bool:
            return any(wanted in rule for rule in balancer.rules(tool, "-c"))

        wait_until(counted, wanted)


def test_segments_are_clamped_on_interfaces_with_packets_too_long_for_a_message(balancer: Balancer) -> None:
    balancer.ip("link set eth1 mtu 65535")
    balancer.done("set_up(config, 0, 4)")
    for tool, mss in (("iptables", 65_488), ("ip6tables", 65_468)):
        assert sum(f"TCPMSS --set-mss {mss}" in rule for rule in balancer.rules(tool)) == 4
    balancer.done("take_down()")


@pytest.mark.parametrize("prepared", [False, True])
def test_ipv6_redirects_show_nobody_a_way_around(balancer: Balancer, prepared: bool) -> None:
    """On one interface for both sides; IPv6 knows no send_redirects."""
    if prepared:
        balancer.done("set_up(config, 0, 4)", with_network(private_interface="eth0"))
    else:
        balancer.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    balancer.ip("neighbor replace 2001:db8::9 lladdr 02:00:00:00:00:09 dev eth0")
    balancer.client.ip("route add 2001:db8::9 via 2001:db8::1")

    def redirected() -> bool:
        balancer.client.run("ping", "-c1", "-W0.2", "2001:db8::9", check=False)
        counters = balancer.client.run("cat", "/proc/net/snmp6").stdout
        return int(re.findall(r"Icmp6InRedirects\s+(\d+)", counters)[0]) > 0

    def dropped() -> bool:
        rules = balancer.rules("ip6tables", "-c")
        return any(re.match(r"\[[1-9].*137 -j DROP", rule) for rule in rules)

    if prepared:
        wait_until(lambda: redirected() or dropped(), "a redirect, or one that was dropped")
        assert not redirected()
    else:
        wait_until(redirected, "a redirect")
