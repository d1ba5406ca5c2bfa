"""What workers have decided is repeated in the kernel: with real clients, whatever happens to the daemon."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options, in_url
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until
from loaded_mp.memory.arena import why_no_arenas

AUTO = 'fast_path = "auto"'


pytestmark = pytest.mark.skipif(bool(why_no_arenas()), reason="this kernel has no BPF arenas (Linux 6.12)")


@contextlib.contextmanager
def served(options: Options, top: str = AUTO) -> Iterator[tuple[Lab, Daemon]]:
    with Lab(options) as lab:
        yield lab, lab.daemon(lab.config(workers=2, checked=False, top=top))


def queued(daemon: Daemon) -> int:
    """Packets that workers have decided."""
    return sum(worker.counters["packets"] for worker in daemon.status().workers)


def repeated(daemon: Daemon) -> int:
    """Packets that the kernel has forwarded."""
    counters = daemon.status().fast_path.counters
    return counters["to_backend"] + counters["to_client"]


def fetch(lab: Lab, url: str, source: str) -> str:
    return lab.client.run("curl", "-s", "-m", "20", "--interface", source, url).stdout


def digest_of_big(lab: Lab, vip: str) -> str:
    source = lab.sources(vip)[0]
    command = f"curl -s -m 30 --interface {source} http://{in_url(vip)}/big | sha256sum"
    return lab.client.run("sh", "-c", command).stdout.split()[0]


def checksum_errors(lab: Lab) -> int:
    """Packets that a backend or the client found to be damaged."""
    total = 0
    for namespace in (lab.client, *(backend.namespace for backend in lab.backends)):
        snmp = [line.split() for line in namespace.run("cat", "/proc/net/snmp").stdout.splitlines()]
        for names, values in zip(snmp[::2], snmp[1::2], strict=True):
            total += sum(
                int(value) for name, value in zip(names, values, strict=True) if name in ("InCsumErrors",)
            )
        for line in namespace.run("cat", "/proc/net/snmp6").stdout.splitlines():
            total += int(line.split()[1]) if "CsumErrors" in line else 0
    return total


@pytest.mark.parametrize(
    "options",
    [Options(sources=4), Options(sources=4, offloads=False), Options(sources=4, one_interface=True)],
    ids=["offloads", "no-offloads", "one-interface"],
)
def test_packets_of_known_flows_pass_by_the_queue(options: Options) -> None:
    with served(options) as (lab, daemon):
        digest = lab.big_file(16)
        for vip in VIPS:
            source = lab.sources(vip)[0]
            backends = {fetch(lab, f"http://{in_url(vip)}/", source) for _ in range(5)}
            assert len(backends) == 1
            assert digest_of_big(lab, vip) == digest
            answers = lab.answers("dns", vip, 5, lab.sources(vip))
            assert all(len(set(each)) == 1 and "error" not in each[0] for each in answers.values()), answers
            lab.client.run("ping", "-c", "3", "-i", "0.2", "-I", source, vip)
        assert checksum_errors(lab) == 0
        status = daemon.status()
        assert (status.fast_path.why_not, not status.fast_path.interfaces) == ("", False)
        assert repeated(daemon) > 500
        assert queued(daemon) < 60
        counted = sum(b.counters["to_client_packets"] for s in status.services for b in s.backends)
        assert counted > 250
        daemon.stop()
        for name in status.fast_path.interfaces:
            assert attached(lab, name) == 0


def attached(lab: Lab, interface: str) -> int:
    """How many descriptors of programs of ours that see an interface's packets there are in the balancer."""
    index = int(lab.balancer.run("cat", f"/sys/class/net/{interface}/ifindex").stdout)
    return sum(
        f"ifindex:\t{index}" in text and "tcx" in text
        for pid in lab.balancer.processes()
        for text in (_read(path) for path in Path(f"/proc/{pid}/fdinfo").glob("*"))
        if "link_type" in text
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def test_a_client_may_speak_to_its_backend_directly() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        for vip in VIPS:
            source = lab.sources(vip)[0]
            name = fetch(lab, f"http://{in_url(vip)}/", source).strip()
            backend = next(each for each in lab.backends if each.name == name)
            own = backend.ipv6 if ":" in vip else backend.ipv4
            for _ in range(3):
                assert fetch(lab, f"http://{in_url(own)}/", source).strip() == name
                assert fetch(lab, f"http://{in_url(vip)}/", source).strip() == name
        assert repeated(daemon) > 0


def test_ports_are_translated() -> None:
    with Lab(Options(sources=4)) as lab:
        config = lab.config(workers=1, checked=False, top=AUTO, service='listen = ["tcp/8080", "udp/53"]')
        for backend in lab.backends:
            config = config.replace(f'"{backend.ipv4}"', f'"{backend.ipv4}:80"')
            config = config.replace(f'"{backend.ipv6}"', f'"[{backend.ipv6}]:80"')
        config = config.replace('listen = ["tcp/8080", "udp/53"]', 'listen = ["tcp/8080"]')
        daemon = lab.daemon(config)
        for vip in VIPS:
            for _ in range(5):
                assert fetch(lab, f"http://{in_url(vip)}:8080/", lab.sources(vip)[0])
        assert repeated(daemon) > 20
        assert checksum_errors(lab) == 0


def test_it_outlives_its_supervisor_and_a_restart() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        digest = lab.big_file(16)
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        lab.balancer.run(loaded_mp(), "restart")
        wait_until(lambda: daemon.log.count("event=ready") == 2, "the restarted daemon", 30.0)
        before = repeated(daemon)
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        assert repeated(daemon) > before
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        assert attached(lab, "public") > 0
        after = lab.daemon(lab.config(workers=2, checked=False, top=AUTO))
        before, decided = repeated(after), queued(after)
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        assert repeated(after) > before
        assert queued(after) - decided < 40
        after.stop()
        assert attached(lab, "public") == 0


def test_cleanup_after_a_crash_leaves_no_program() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        assert attached(lab, "public") > 0
        assert fetch(lab, f"http://{VIPS[0]}/", lab.sources4[0])
        said = lab.balancer.run(loaded_mp(), "cleanup").stdout
        assert "as it was before" in said
        assert attached(lab, "public") == attached(lab, "private") == 0
        assert "LOADED-" not in lab.balancer.run("iptables-save").stdout


def test_reloads_hold_for_the_next_packet() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        source = lab.sources4[0]
        name = fetch(lab, f"http://{VIPS[0]}/", source).strip()
        lab.balancer.run(loaded_mp(), "maintenance", name, "--service", "web")
        other = fetch(lab, f"http://{VIPS[0]}/", source).strip()
        assert other != name
        for turn in range(20):
            daemon.ask("weight", list, backend=other, service="web", weight=turn + 1)
            assert fetch(lab, f"http://{VIPS[0]}/", source).strip() == other
        assert repeated(daemon) > 0


#: Weighs a backend anew until the buffers that programs read were written again many times.
WEIGH_OFTEN = """
import itertools, sys
from loaded_mp.control.client import ask
from loaded_mp.status import Status
last = ask("status", Status).generation + 50
for weight in itertools.cycle(range(1, 8)):
    ask("weight", list, backend=sys.argv[1], service="web", weight=weight)
    if ask("status", Status).generation >= last:
        break
"""


def test_reloads_in_a_loop_disturb_no_packet() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        digest = lab.big_file(64)
        for vip in VIPS:
            assert fetch(lab, f"http://{in_url(vip)}/", lab.sources(vip)[0])
        before = daemon.status()
        weighing = lab.balancer.start(sys.executable, "-c", WEIGH_OFTEN, "backend1")
        rounds = 0
        while weighing.poll() is None or rounds < 3:
            assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
            rounds += 1
        assert weighing.returncode == 0
        after = daemon.status()
        assert after.generation >= before.generation + 50
        counters = after.fast_path.counters
        assert counters["to_backend"] + counters["to_client"] > 1000 * rounds
        assert counters["gone"] == counters["unchanged"] == 0
        assert checksum_errors(lab) == 0


#: What may begin; all else has to belong to what has begun.
FIREWALL = """
-P FORWARD DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -o private -p tcp --dport 80 --syn -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -o private -p udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -o private -p {icmp} -m conntrack --ctstate NEW -j ACCEPT
"""


def test_a_stateful_firewall_sees_one_connection() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        digest = lab.big_file(16)
        for tool, icmp in (("iptables", "icmp"), ("ip6tables", "icmpv6")):
            for line in FIREWALL.format(icmp=icmp).strip().splitlines():
                lab.balancer.run(tool, *line.split())
        for vip in VIPS:
            assert fetch(lab, f"http://{in_url(vip)}/", lab.sources(vip)[0])
            assert digest_of_big(lab, vip) == digest
            answers = lab.answers("dns", vip, 5, lab.sources(vip))
            assert all(len(set(each)) == 1 and "error" not in each[0] for each in answers.values()), answers
            source = lab.sources(vip)[0]
            ping = lab.client.run("ping", "-c", "3", "-i", "0.2", "-I", source, vip).stdout
            assert "3 received" in ping
        assert repeated(daemon) > 200


def test_no_reply_keeps_its_backends_address_while_the_rules_are_away() -> None:
    with served(Options(sources=4)) as (lab, daemon):
        for vip, tool in zip(VIPS, ("iptables", "ip6tables"), strict=True):
            words = ("ping", "-i", "0.005", "-w", "3", "-I", lab.sources(vip)[0], vip)
            ping = lab.client.talk(*words)
            for _ in range(4):
                mends = daemon.status().drifts_mended
                lab.balancer.run(tool, "-t", "mangle", "-F")
                wait_until(lambda: daemon.status().drifts_mended > mends, "the rules are back")  # noqa: B023
            said, _ = ping.communicate(timeout=20)
            assert "DIFFERENT" not in said
            assert int(re.findall(r"(\d+) received", said)[0]) > 100
        assert daemon.status().fast_path.counters["gone"] > 0


UNIT = Path(__file__).parents[2] / "deploy/loaded-mp.service"


def capabilities() -> set[str]:
    """Those that the unit gives, in setpriv's words."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return {each.removeprefix("CAP_").lower() for each in line.split()}


@pytest.mark.parametrize("without", ["", "bpf", pytest.param("perfmon", marks=pytest.mark.long)])
def test_the_units_capabilities_are_enough_and_without_them_workers_see_all(without: str) -> None:
    with Lab(Options(sources=4)) as lab:
        path = lab.folder / "loaded-mp.toml"
        path.write_text(lab.config(workers=2, checked=False, top=AUTO))
        bounding = ",".join(["-all", *(f"+{each}" for each in sorted(capabilities() - {without}))])
        words = ("setpriv", "--no-new-privs", "--bounding-set", bounding, loaded_mp(), "-c", str(path))
        daemon = lab.start_daemon_by(*words).ready()
        for vip in VIPS:
            for _ in range(3):
                assert fetch(lab, f"http://{in_url(vip)}/", lab.sources(vip)[0])
        fast_path = daemon.status().fast_path
        if without:
            assert fast_path.interfaces == ()
            said = "CAP_PERFMON are required" if without == "perfmon" else "it takes CAP_BPF"
            assert said in fast_path.why_not
            assert len(fast_path.why_not.splitlines()) == 1
            assert queued(daemon) > 20
        else:
            assert (fast_path.interfaces, fast_path.why_not) == (("public", "private"), "")
            assert repeated(daemon) > 20


def test_off_means_that_workers_see_all() -> None:
    with served(Options(sources=4), top='fast_path = "off"') as (lab, daemon):
        assert fetch(lab, f"http://{VIPS[0]}/", lab.sources4[0])
        status = daemon.status()
        assert (status.fast_path.interfaces, status.fast_path.why_not) == ((), 'fast_path = "off"')
        assert repeated(daemon) == 0
        assert queued(daemon) > 5


def test_it_begins_when_a_reload_gives_it_something_to_do() -> None:
    with Lab(Options(sources=4)) as lab:
        rewriting = lab.config(workers=2, checked=False, top=AUTO)
        daemon = lab.daemon(rewriting.replace('name = "web"', 'name = "web"\nforwarding = "conntrack"', 1))
        assert daemon.status().fast_path.why_not == "no service is forwarded by rewriting"
        daemon.reload(rewriting)
        wait_until(lambda: daemon.status().fast_path.interfaces == ("public", "private"), "it has begun")
        digest = lab.big_file(16)
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        assert repeated(daemon) > 100
        daemon.stop()
        assert attached(lab, "public") == attached(lab, "private") == 0


REDIRECT = 'fast_path = "redirect"'
#: Services whose replies say which VIP they come from: one VIP of a family, and what it listens to is named.
LISTEN = 'listen = ["tcp/80", "tcp/7000", "udp/53", "icmp"]'


@contextlib.contextmanager
def redirected(options: Options) -> Iterator[tuple[Lab, Daemon]]:
    with Lab(options) as lab:
        yield lab, lab.daemon(lab.config(workers=2, checked=False, top=REDIRECT, service=LISTEN))


def past_the_stack(daemon: Daemon) -> int:
    """Packets that no FORWARD rule saw."""
    return daemon.status().fast_path.counters["redirected"]


@pytest.mark.parametrize(
    "offloads", [True, pytest.param(False, marks=pytest.mark.long)], ids=["offloads", "no-offloads"]
)
def test_packets_are_redirected_past_the_firewall(offloads: bool) -> None:
    with redirected(Options(sources=4, offloads=offloads)) as (lab, daemon):
        digest = lab.big_file(16)
        for vip in VIPS:
            source = lab.sources(vip)[0]
            assert fetch(lab, f"http://{in_url(vip)}/", source)
        forwarded = "iptables", "ip6tables"
        for tool in forwarded:
            lab.balancer.run(tool, "-A", "FORWARD", "-p", "tcp", "--dport", "80", "-j", "DROP")
            lab.balancer.run(tool, "-A", "FORWARD", "-p", "tcp", "--sport", "80", "-j", "DROP")
        assert [digest_of_big(lab, vip) for vip in VIPS] == [digest] * 2
        for vip in VIPS:
            answers = lab.answers("dns", vip, 5, lab.sources(vip))
            assert all(len(set(each)) == 1 and "error" not in each[0] for each in answers.values()), answers
            ping = lab.client.run("ping", "-c", "3", "-i", "0.2", "-I", lab.sources(vip)[0], vip).stdout
            assert "3 received" in ping
            assert "ttl=63" in ping  # one hop each way: this host
        assert checksum_errors(lab) == 0
        assert past_the_stack(daemon) > 200
        assert past_the_stack(daemon) > 0.9 * repeated(daemon)
        daemon.stop()
        assert attached(lab, "public") == attached(lab, "private") == 0


def test_status_names_what_is_not_redirected() -> None:
    with Lab(Options()) as lab:
        daemon = lab.daemon(lab.config(checked=False, top=REDIRECT))
        said = " ".join(lab.balancer.run(loaded_mp(), "status").stdout.split())
        assert "service web is not redirected: its backends may begin something over UDP" in said
        daemon.reload(lab.config(checked=False, top=REDIRECT, service=LISTEN))
        assert daemon.status().fast_path.not_redirected == {}
        daemon.stop()


def test_a_client_of_the_vip_may_speak_to_its_backend_directly_where_packets_are_redirected() -> None:
    with redirected(Options(sources=4)) as (lab, daemon):
        for vip in VIPS:
            source = lab.sources(vip)[0]
            by_vip = Line(lab.client, vip, source)
            home = by_vip.ask().split()[0]
            backend = next(each for each in lab.backends if each.name == home)
            own = backend.ipv6 if ":" in vip else backend.ipv4
            direct = Line(lab.client, own, source)
            for line in (direct, by_vip) * 3:
                assert line.ask() == f"{home} hello"
            words = ("dig", "+short", "-b", source, f"@{own}", "who", "TXT")
            assert lab.client.run(*words).stdout == f'"{home}"\n'
            ping = lab.client.run("ping", "-c", "2", "-i", "0.2", "-I", source, own).stdout
            assert f"from {own}" in ping
            lab.let_backends_speak()
            assert [line.hear() for line in (direct, by_vip)] == [f"{home} speaks"] * 2
        assert past_the_stack(daemon) > 10


def ready(daemon: Daemon, times: int) -> bool:
    return daemon.log.count("event=ready") == times


def test_a_switch_to_redirects_and_back_is_a_restart() -> None:
    with redirected(Options(sources=4)) as (lab, daemon):
        talking = [Line(lab.client, vip, source) for vip in VIPS for source in lab.sources(vip)]
        homes = [line.ask().split()[0] for line in talking]
        config = lab.config(workers=2, checked=False, top=REDIRECT, service=LISTEN)
        for turn, top in enumerate((AUTO, 'fast_path = "off"', REDIRECT), 2):
            with pytest.raises(RuntimeError, match="only 'loaded-mp restart' takes over fast_path"):
                daemon.reload(config.replace(REDIRECT, top))
            lab.balancer.run(loaded_mp(), "restart")
            wait_until(partial(ready, daemon, turn), "the restarted daemon", 30.0)
            before = past_the_stack(daemon)
            lab.let_backends_speak()
            assert [line.hear() for line in talking] == [f"{home} speaks" for home in homes]
            assert [line.ask() for line in talking] == [f"{home} hello" for home in homes]
            assert (past_the_stack(daemon) > before) == (top == REDIRECT)
            assert bool(attached(lab, "public")) == (top != 'fast_path = "off"')
