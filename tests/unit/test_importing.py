"""import: what other balancers are configured by becomes the same services, or is named."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from loaded_mp.cli.main import main
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Service
from loaded_mp.config.toml import parse_toml
from loaded_mp.fields import MAX_WEIGHT
from loaded_mp.importing import READERS, found_in
from loaded_mp.importing.writer import Imported, written
from loaded_mp.schedulers import SCHEDULERS

pytestmark = pytest.mark.uncompiled

EXAMPLES = Path(__file__).parent / "importing"
#: Of the distributions of keepalived and HAProxy, where they are installed.
INSTALLED = sorted(
    path
    for folder, pattern in (("keepalived/samples", "keepalived.conf*"), ("haproxy/examples", "*.cfg"))
    for path in Path("/usr/share/doc", folder).glob(pattern)
    if path.suffix != ".gz"
)
#: Lines of a file that say nothing of where they come from: they end a list, or are there by themselves.
BARE = re.compile(r"# .*|#?\]|#?\w+ = \[|")


def imported(text: str, *vips: str) -> Imported:
    return written([found_in(text, "f")], vips)


def services(found: Imported) -> list[Service]:
    """The services of what was written, which has to load."""
    return list(parse_toml(found.toml, "o").config().services) if found.toml else []


def one(text: str, *vips: str) -> Service:
    (service,) = services(imported(text, *vips))
    return service


def left_out(found: Imported) -> list[str]:
    """Line and word of each."""
    return [f"{each.place.rpartition(':')[2]}: {each.key}" for each in found.left_out]


@pytest.mark.parametrize("name", ["lvs.rules", "keepalived.conf", "haproxy.cfg"])
def test_the_examples(name: str) -> None:
    found = imported((EXAMPLES / name).read_text(), "192.0.2.99")
    wanted = parse_toml((EXAMPLES / f"{name}.toml").read_text(), name).config()
    assert services(found) == list(wanted.services)
    assert left_out(found) == (EXAMPLES / f"{name}.left").read_text().splitlines()


@pytest.mark.parametrize("name", ["lvs.rules", "keepalived.conf", "haproxy.cfg"])
def test_each_line_says_where_it_comes_from(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    found = written([found_in(text, name)], ["192.0.2.99"])
    source = text.splitlines()
    seen = 0
    for line in found.toml.splitlines():
        if BARE.fullmatch(line) and not line.startswith("#["):
            continue
        comment = re.search(rf" # (?:{re.escape(name)}:(\d+)|--vip) (\S+)", line)
        assert comment, line
        if comment[1]:
            assert comment[2].strip(";\"'") in source[int(comment[1]) - 1], line
        seen += 1
    assert seen > 30
    for each in found.left_out:
        assert f"# left out: {each}" in found.toml
        assert each.text


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.name)
def test_examples_of_others_are_carried_over_or_named(path: Path) -> None:
    text = path.read_text(errors="replace")
    try:
        found = imported(text, "192.0.2.99")
    except ConfigError:
        pytest.skip("it is none of these files")
    services(found)
    assert found.toml or found.left_out


def test_examples_of_others_are_there_where_they_are_installed() -> None:
    if not INSTALLED:
        pytest.skip("neither keepalived nor HAProxy is installed with its documentation")


# --- Words, one by one.

LVS = "-A -t 192.0.2.10:80 -s rr {service}\n-a -t 192.0.2.10:80 -r 10.0.0.1:80 -m {server}\n"
KEEPALIVED = """virtual_server 192.0.2.10 80 {{
 lb_algo rr
 {service}
 real_server 10.0.0.1 80 {{
  {server}
 }}
}}
"""
HAPROXY = """{before}
listen web
 mode tcp
 bind 192.0.2.10:80
 {service}
 server a 10.0.0.1:80 {server}
"""


def filled(template: str, **parts: str) -> str:
    return template.format(**{"service": "", "server": "", "before": "", **parts})


def settings_of(service: Service) -> dict[str, Any]:
    """All of them, those of its only backend and its check among them."""
    data = service.model_dump(mode="json")
    for name, those in (("checks", service.checks), ("backends", service.backends)):
        for each in those:
            data |= {f"{name}.{key}": value for key, value in each.model_dump(mode="json").items()}
    return data | {"listen": [str(each) for each in service.listen], "on_down": service.on_down.tcp}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (filled(LVS, service="-p 100"), {"affinity": "source", "tcp_idle_s": 900}),
        (filled(LVS, service="-p 1000"), {"affinity": "source", "tcp_idle_s": 1000}),
        (filled(LVS, service="-p"), {"affinity": "source", "tcp_idle_s": 900}),
        (filled(LVS, service="--persistent=950 --netmask=255.255.0.0"), {"affinity": "source/16/128"}),
        (filled(LVS), {"affinity": "connection", "scheduler": "rr", "listen": ["tcp/80"]}),
        (filled(LVS, server="-w 7"), {"backends.weight": 7}),
        (filled(LVS, server="-w7"), {"backends.weight": 7}),
        (filled(LVS, server="--weight=0"), {"backends.weight": 0, "all_zero": True}),
        (filled(KEEPALIVED, service="persistence_timeout"), {"affinity": "source", "tcp_idle_s": 900}),
        (filled(KEEPALIVED, service="alpha"), {"initial": "down"}),
        (filled(KEEPALIVED, service="inhibit_on_failure"), {"on_down": "keep"}),
        (filled(KEEPALIVED, server="inhibit_on_failure"), {"on_down": "keep"}),
        (filled(KEEPALIVED, service="quorum 1\nquorum 2"), {"quorum": 2}),
        (filled(KEEPALIVED, service="snmp_name a.b"), {"name": "a.b"}),
        (filled(KEEPALIVED, server="TCP_CHECK {\n connect_ip 10.0.0.7\n }"),
         {"checks.port": 80, "checks.timeout_s": 5, "checks.interval_s": 60,
          "backends.check_address": "10.0.0.7"}),
        (filled(KEEPALIVED, server="delay_loop 4\nPING_CHECK {\n retry 0\n}"),
         {"checks.type": "icmp", "checks.interval_s": 4, "checks.fall": 1}),
        (filled(KEEPALIVED, server="DNS_CHECK {\n type A\n name example.org\n}"),
         {"checks.type": "dns", "checks.name": "example.org", "checks.port": 80, "checks.fall": 4}),
        (filled(KEEPALIVED, server="DNS_CHECK {\n}"), {"checks.name": ".", "checks.record": "SOA"}),
        (filled(KEEPALIVED, server="SMTP_CHECK {\n host {\n connect_port 26\n}\n}"), {"checks.port": 26}),
        (filled(KEEPALIVED, server="SSL_GET {\n enable_sni\n virtualhost a.b\n}"),
         {"checks.type": "https", "checks.server_name": "a.b", "checks.status": ["200-299"]}),
        (filled(KEEPALIVED, server='UDP_CHECK {\n payload 01 a 2ff\n require_reply Xa xx 0X\n}'),
         {"checks.send": "\x01\n/\x0f"}),
        (filled(HAPROXY, service="balance random"), {"scheduler": "twos"}),
        (filled(HAPROXY, service="balance source"), {"scheduler": "sh", "affinity": "source"}),
        (filled(HAPROXY, server="on-marked-down shutdown-sessions"), {"on_down": "reset"}),
        (filled(HAPROXY, server="check check-ssl verify none check-sni a.b"),
         {"checks.type": "tls", "checks.server_name": "a.b", "checks.port": 80, "checks.timeout_s": 2.0}),
        (filled(HAPROXY, server="agent-check agent-port 99 agent-inter 5s"),
         {"checks.type": "agent", "checks.port": 99, "checks.interval_s": 5.0}),
        (filled(HAPROXY, server="check addr 10.0.0.7 port 81"),
         {"checks.port": 81, "backends.check_address": "10.0.0.7"}),
        (filled(HAPROXY, service="option redis-check", server="check"), {"checks.send": "PING\r\n"}),
        (filled(HAPROXY, service="option httpchk", server="check"), {"checks.method": "OPTIONS"}),
        (filled(HAPROXY, service="option httpchk /a", server="check"), {"checks.path": "/a"}),
        (filled(HAPROXY, service="option httpchk\n http-check send meth GET uri /a hdr Host b hdr X y\n"
                " http-check expect string 'a b'", server="check"),
         {"checks.path": "/a", "checks.host": "b", "checks.headers": ["X: y"], "checks.expect": r"a\ b"}),
        (filled(HAPROXY, service="option tcp-check\n tcp-check send-binary 0aff\n tcp-check expect binary 00",
                server="check"), {"checks.send": "\n\xff", "checks.expect": r"\x00"}),
        (filled(HAPROXY, service="timeout client 30s\n timeout client-fin 1500"),
         {"tcp_idle_s": 30, "tcp_fin_idle_s": 2}),
        (filled(HAPROXY, before="defaults a\n balance leastconn\ndefaults b\n balance source").replace(
            "listen web", "listen web from a"), {"scheduler": "wlc"}),
    ],
)  # fmt: skip
def test_a_word_and_what_it_becomes(text: str, wanted: dict[str, Any]) -> None:
    found = settings_of(one(text))
    for name, value in wanted.items():
        assert found[name] == value, name


@pytest.mark.parametrize(
    ("text", "word", "why"),
    [
        (filled(LVS, service="--pe sip"), "--pe sip", "known by its address"),
        (filled(LVS, service="--wrong"), "--wrong", "no such option"),
        (filled(LVS, service="-M 255.0.255.0 -p 9"), "-M 255.0.255.0", "expected a netmask"),
        (filled(LVS, service="-M 255.0.0.0"), "-M 255.0.0.0", "no persistence"),
        (filled(LVS, server="-w 70000"), "-w 70000", "less than or equal to 65535"),
        (filled(LVS, service="-o", server="-x 9").replace("-t", "-u"), "-x 9", "expected another affinity"),
        (filled(LVS, server="-x 9 -y 10"), "-y 10", "expected most_flows or less"),
        (filled(LVS, service="-s never"), "-s never", "expected 'rr'"),
        (filled(LVS) + "-D -t 192.0.2.10:80", "-D -t 192.0.2.10:80", "leave out its -A"),
        (filled(LVS) + "iptables -A INPUT", "iptables -A INPUT", "expected a command"),
        (filled(LVS) + "-A -t 192.0.2.11:80", "-A -t 192.0.2.11:80", "nothing is left of its backends"),
        (filled(LVS) + "-A -t 192.0.2.11:none", "-A -t 192.0.2.11:none", "expected ADDRESS:PORT"),
        (filled(LVS) + "-a -t 192.0.2.10:80 -r 10.0.0.2:80", "-r 10.0.0.2:80", "a service for each way"),
        (filled(LVS) + "-a -t 192.0.2.10:80 -r web2 -m", "-r web2", "expected ADDRESS:PORT"),
        (filled(LVS) + "--set 1 2", "--set 1 2", "expected three times"),
        (filled(KEEPALIVED, service="quorum 1\nquorum 2"), "quorum 1", "again below"),
        (filled(KEEPALIVED, service="hysteresis 2"), "hysteresis 2", "same weight"),
        (filled(KEEPALIVED, service="omega"), "omega", "a stop runs no command"),
        (filled(KEEPALIVED, service="quorum_up /bin/true a b"), "quorum_up /bin/true a b", "own group"),
        (filled(KEEPALIVED, service="quorum_up /bin/true root\nquorum_down /bin/true nobody"),
         "quorum_down /bin/true nobody", "one user"),
        (filled(KEEPALIVED, service="sh-port"), "sh-port", "port does not count"),
        (filled(KEEPALIVED, service="unheard of"), "unheard of", "nothing here"),
        (filled(KEEPALIVED, service="lvs_method TUN type gre csum"), "lvs_method TUN type gre csum", "csum:"),
        (filled(LVS, server="--tun-csum"), "--tun-csum", "nothing here"),
        (filled(KEEPALIVED, server="BFD_CHECK {\n name a\n}"), "BFD_CHECK", "icmp"),
        (filled(KEEPALIVED, server="UDP_CHECK {\n}"), "UDP_CHECK", "silence is a fault"),
        (filled(KEEPALIVED, server="MISC_CHECK {\n misc_path /no/such\n}"), "misc_path /no/such", "executed"),
        (filled(KEEPALIVED, server="HTTP_GET {\n url {\n regex a\nregex_no_match\n}\n}"), "regex a", "not"),
        (filled(KEEPALIVED, server="HTTP_GET {\n url {\n regex (?=a)\n}\n}"), "regex (?=a)", "regular"),
        (filled(KEEPALIVED) + "}", "}", "belongs to nothing"),
        (filled(KEEPALIVED) + "virtual_server group no {\n}", "virtual_server group no", "no such"),
        (filled(KEEPALIVED) + "virtual_server_group no {\n}", "virtual_server_group no", "no virtual_server"),
        (filled(KEEPALIVED) + "virtual_server a.b 80 {\n}", "192.0.2.x", ""),
        (filled(HAPROXY, service="timeout client 0"), "timeout client 0", "without an end"),
        (filled(HAPROXY, service="timeout connect 1s"), "timeout connect 1s", "connections"),
        (filled(HAPROXY, service="stick-table type ip size 1m"), "stick-table type ip size 1m", "counts by"),
        (filled(HAPROXY, service="stick on src\n stick-table type ip peers a"), "peers a", "not shared"),
        (filled(HAPROXY, service="balance uri"), "balance uri", "not looked at"),
        (filled(HAPROXY, service="balance first"), "balance first", "fo and ovf"),
        (filled(HAPROXY, service="acl a src 10.0.0.0/8"), "acl a src 10.0.0.0/8", "no firewall"),
        (filled(HAPROXY, service="no option redispatch"), "no option redispatch", "connections"),
        (filled(HAPROXY, service='log "$HOST"'), 'log "$HOST"', "environment"),
        (filled(HAPROXY, service="log 'a"), "log 'a", "not closed"),
        (filled(HAPROXY, service=".if 1"), ".if 1", "conditions"),
        (filled(KEEPALIVED, service="persistence_timeout a"), "persistence_timeout a", "number of seconds"),
        (filled(HAPROXY, service="tcp-check send a"), "tcp-check send a", "no option"),
        (filled(HAPROXY, service="option tcp-check\n tcp-check expect string a\n tcp-check send b",
                server="check"), "tcp-check send b", "type command"),
        (filled(HAPROXY, server="ssl verify none"), "server a 10.0.0.1:80", "TLS"),
        (filled(HAPROXY, server="track b/c"), "track b/c", "same check"),
        (filled(HAPROXY, service="bind unix@/a"), "bind unix@/a", "expected ADDRESS:PORT"),
        (filled(HAPROXY, service="disabled"), "listen web", "disabled"),
        (filled(HAPROXY) + "backend b\n server c 10.0.0.9:1", "backend b", "no frontend"),
        (filled(HAPROXY) + "frontend b\n bind 192.0.2.20:1", "frontend b", "no default_backend"),
        (filled(HAPROXY) + "listen b\n bind 192.0.2.20:1", "listen b", "no server"),
    ],
)  # fmt: skip
def test_a_word_that_is_left_out(text: str, word: str, why: str) -> None:
    found = imported(text)
    services(found)
    if why:
        assert any(why in each.text for each in found.left_out if each.key == word)


def test_a_network_is_one_vip() -> None:
    text = filled(KEEPALIVED)
    assert [str(each) for each in one(text.replace("192.0.2.10", "192.0.2.20/28")).vips] == ["192.0.2.16/28"]
    assert "at most 4,096" in imported(text.replace("192.0.2.10", "10.0.0.0/8")).left_out[-1].text


def test_a_service_without_an_address_waits_for_one() -> None:
    text = filled(HAPROXY).replace("192.0.2.10:80", "*:80")
    found = imported(text)
    assert (found.toml, left_out(found)) == ("", ["2: listen web"])
    assert "--vip" in found.left_out[0].text
    vips = one(text, "192.0.2.1", "2001:db8::1", "192.0.2.2").vips
    assert [str(each.ip) for each in vips] == ["192.0.2.1", "192.0.2.2"]


def test_to_listen_to_nothing_known_is_not_to_listen_to_everything() -> None:
    found = imported(filled(KEEPALIVED, service="protocol CHAOS"))
    assert found.toml == ""
    assert "nothing is left of its listen" in {each.text for each in found.left_out}


def test_a_port_of_a_check_that_is_the_servers_own_makes_no_difference() -> None:
    text = filled(HAPROXY, server="check") + " server b 10.0.0.2:80 check port 80\n"
    assert [each.model_dump()["port"] for each in one(text).checks] == [80]
    assert not imported(text).left_out


def test_backends_have_ports_of_their_own() -> None:
    text = filled(HAPROXY, server="check") + " server b 10.0.0.2:8080 check\n"
    service = one(text.replace("192.0.2.10:80", "192.0.2.10:80,192.0.2.11:80"))
    assert [str(each.address) for each in service.backends] == ["10.0.0.1:80", "10.0.0.2:8080"]
    assert [str(service.asked(service.checks[0], each)) for each in service.backends] == [
        "10.0.0.1:80",
        "10.0.0.2:8080",
    ]


def test_a_backup_that_is_asked_here_is_asked_where_it_answers() -> None:
    text = filled(KEEPALIVED, service="sorry_server 10.0.0.9 80", server="TCP_CHECK { connect_port 8080 }")
    service = one(text.replace("10.0.0.1 80", "10.0.0.1 8080"))
    assert [str(service.asked(service.checks[0], each)) for each in service.backends] == [
        "10.0.0.1:8080",
        "10.0.0.9:80",
    ]


def test_a_service_for_each_port_that_others_are_for() -> None:
    text = filled(HAPROXY).replace("192.0.2.10:80", "192.0.2.10:80,192.0.2.10:81")
    assert [[str(each) for each in service.listen] for service in services(imported(text))] == [
        ["tcp/80"],
        ["tcp/81"],
    ]
    assert [str(each.backends[0].address) for each in services(imported(text))] == ["10.0.0.1", "10.0.0.1:80"]
    same = text.replace("10.0.0.1:80", "10.0.0.1")
    assert [str(each) for each in one(same).listen] == ["tcp/80", "tcp/81"]


def test_ports_of_a_range_go_to_a_range() -> None:
    text = filled(HAPROXY).replace("192.0.2.10:80", "192.0.2.10:8000-8010")
    there = one(text.replace("10.0.0.1:80", "10.0.0.1:+1000"))
    assert str(there.backends[0].address) == "10.0.0.1:9000"
    assert "range" in {each.key: each.text for each in imported(text).left_out}["server a 10.0.0.1:80"]


def test_of_options_in_defaults_the_last_one_holds() -> None:
    before = "defaults\n option httpchk\n option tcp-check\n option httpchk"
    assert [each.type for each in one(filled(HAPROXY, before=before, server="check")).checks] == ["http"]


def test_a_check_that_only_some_backends_have_is_for_all_and_is_said() -> None:
    found = imported(filled(HAPROXY) + " server b 10.0.0.2:80 check\n")
    assert len(one(filled(HAPROXY) + " server b 10.0.0.2:80 check\n").checks) == 1
    assert [each.key for each in found.notes] == ["server a 10.0.0.1:80"]


def test_of_different_checks_that_of_most_backends_is_carried_over() -> None:
    more = "".join(f" server b{row} 10.0.0.{row}:80 check inter 3s\n" for row in (2, 3))
    text = filled(HAPROXY, server="check inter 9s") + more
    assert [each.interval_s for each in one(text).checks] == [3]
    assert left_out(imported(text)) == ["6: check"]


def test_names_are_given_once() -> None:
    twice = filled(HAPROXY) + filled(HAPROXY).replace("192.0.2.10", "192.0.2.11")
    assert [each.name for each in services(imported(twice))] == ["web", "web-2"]


def test_files_come_together() -> None:
    keepalived = filled(KEEPALIVED).replace("192.0.2.10", "192.0.2.11")
    found = written([found_in(filled(LVS), "a"), found_in(keepalived, "b")], ())
    assert [each.name for each in services(found)] == ["tcp-192.0.2.10-80", "tcp-192.0.2.11-80"]


def test_each_kind_is_known_by_itself_alone() -> None:
    for name, reader in zip(("lvs.rules", "haproxy.cfg", "keepalived.conf"), READERS, strict=True):
        assert [each for each in READERS if each.knows((EXAMPLES / name).read_text())] == [reader]
    with pytest.raises(ConfigError, match="none of these: output of ipvsadm -S"):
        found_in("hello\n", "f")


# --- A random configuration, written in the words of others, is the same when it comes back.

OURS = st.sampled_from(["192.0.2.", "2001:db8::"])


@st.composite
def backends(draw: st.DrawFn, prefix: str, most_weight: int, port: int | None) -> list[dict[str, Any]]:
    inside = "10.0.0." if "." in prefix else "fd00::"
    rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True))
    own = draw(st.none() | st.integers(1, 65_535)) if port else None
    found = []
    for row in rows:
        address = f"{inside}{row}"
        if own and own != port:
            address = f"[{address}]:{own}" if ":" in address else f"{address}:{own}"
        backend: dict[str, Any] = {"address": address, "weight": draw(st.integers(0, most_weight))}
        if draw(st.booleans()):
            backend["most_flows"] = draw(st.integers(10, 1_000))
        found.append(backend)
    return found


@st.composite
def of_lvs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Services that LVS can have."""
    found: list[dict[str, Any]] = []
    for row in range(draw(st.integers(1, 3))):
        prefix = draw(OURS)
        protocol = draw(st.sampled_from(["tcp", "udp"]))
        kind = draw(st.sampled_from(["connection", "source", "none"]))
        protocol = "udp" if kind == "none" else protocol
        port = draw(st.integers(1, 65_535) | (st.none() if kind == "source" else st.integers(1, 65_535)))
        service: dict[str, Any] = {
            "name": f"s{row}",
            "vips": [f"{prefix}{row + 100}"],
            "listen": [f"{protocol}/{port}" if port else protocol],
            "scheduler": draw(st.sampled_from(sorted(SCHEDULERS))),
            "affinity": kind,
            "backends": draw(backends(prefix, MAX_WEIGHT, port)),
        }
        if kind == "source":
            least = {"tcp": 900, "udp": 300}[protocol]
            service[f"{protocol}_idle_s"] = draw(st.integers(least, 604_800))
            bits = draw(st.none() | st.integers(1, 32 if "." in prefix else 127))
            if bits:
                service["affinity"] = f"source/{bits}" if "." in prefix else f"source/32/{bits}"
        if kind == "none":
            for each in service["backends"]:
                each.pop("most_flows", None)
        if not any(each["weight"] for each in service["backends"]):
            service["all_zero"] = True
        found.append(service)
    return found


def endpoint(address: str, port: int | None) -> tuple[str, int | None]:
    """Address and port of a backend, which has the service's unless it says another."""
    if bracketed := re.fullmatch(r"\[(.*)\]:(\d+)", address):
        return bracketed[1], int(bracketed[2])
    if address.count(":") == 1:
        plain, own = address.split(":")
        return plain, int(own)
    return address, port


def listener(service: dict[str, Any]) -> tuple[str, int | None]:
    protocol, _, port = service["listen"][0].partition("/")
    return protocol, int(port) if port else None


def at(address: str, port: int | None) -> str:
    return f"[{address}]:{port or 0}" if ":" in address else f"{address}:{port or 0}"


def as_ipvsadm(found: list[dict[str, Any]]) -> Iterator[str]:
    for service in found:
        protocol, port = listener(service)
        where = f"-{protocol[0]} {at(service['vips'][0], port)}"
        yield f"-A {where} -s {service['scheduler']}" + "".join(
            persistence(service, " -p {}", " -M {}", " -o")
        )
        for each in service["backends"]:
            more = f" -x {each['most_flows']}" if "most_flows" in each else ""
            server = at(*endpoint(each["address"], port))
            yield f"-a {where} -r {server} -m -w {each['weight']}{more}"


def persistence(service: dict[str, Any], timeout: str, mask: str, ops: str) -> Iterator[str]:
    """The words of LVS for an affinity."""
    kind, *bits = service["affinity"].split("/")
    if kind == "none":
        yield ops
    if kind == "source":
        yield timeout.format(service.get("tcp_idle_s") or service["udp_idle_s"])
        if len(bits) == 2:
            yield mask.format(bits[1])
        elif bits:
            number = (0xFFFFFFFF << (32 - int(bits[0]))) & 0xFFFFFFFF
            yield mask.format(".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)))


@given(of_lvs())
@settings(max_examples=40)
def test_what_ipvsadm_prints_comes_back(ours: list[dict[str, Any]]) -> None:
    assert_same(imported("\n".join(as_ipvsadm(ours))), ours)


def assert_same(found: Imported, ours: list[dict[str, Any]]) -> None:
    assert not found.left_out
    wanted = [Service.model_validate(each) for each in ours]
    assert [each.model_copy(update={"name": ""}) for each in services(found)] == [
        each.model_copy(update={"name": ""}) for each in wanted
    ]


TIMED = {"interval_s": st.integers(1, 600), "timeout_s": st.integers(1, 60), "fall": st.integers(2, 20)}


@st.composite
def of_keepalived(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Services that keepalived can have, with one check each."""
    found = draw(of_lvs())
    for service in found:
        if draw(st.booleans()):
            service["initial"] = "down"
        if draw(st.booleans()):
            service["on_down"] = "keep"
        if draw(st.booleans()):
            service["quorum"] = draw(st.integers(1, 100))
            service["quorum_up"] = ["/bin/true", draw(st.sampled_from(["up", "it is", "#1", "a!b", "{c}"]))]
        _, port = listener(service)
        kind = draw(st.sampled_from([*AS_KEEPALIVED, ""]))
        if kind and port:
            check: dict[str, Any] = {name: draw(values) for name, values in TIMED.items()}
            check |= {"type": kind, "rise": 1, "fast_interval_s": draw(st.sampled_from([0.5, 1, 7]))}
            if kind not in ("icmp", "command"):
                check["port"] = draw(st.integers(1, 65_535))
            check |= draw(OTHERS[kind])
            service["checks"] = [check]
        if draw(st.booleans()):
            backup = "10.0.0.200" if "." in service["vips"][0] else "fd00::200"
            service["backends"].append({"address": backup, "backup": True, "weight": 1})
            service.pop("all_zero", None)
    return found


EXPECTED = ["^OK", r"a\.b", 'say "it"', "#!{}"]
PATHS = st.sampled_from(["/", "/health", "/a?b=c", "/~a'b", "/a;b"])
OTHERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "tcp": st.just({}),
    "icmp": st.just({}),
    "smtp": st.just({}),
    "http": st.fixed_dictionaries(
        {"path": PATHS, "status": st.sampled_from([["200-299"], ["200"], ["204", "300-399"]])},
        optional={"host": st.just("www.example.org"), "expect": st.sampled_from(EXPECTED)},
    ),
    "dns": st.fixed_dictionaries(
        {"name": st.sampled_from([".", "a.b"]), "record": st.sampled_from(["A", "SOA"])}
    ),
    "command": st.fixed_dictionaries(
        {
            "run": st.sampled_from([["/bin/true"], ["/bin/true", "{address}", "a b"]]),
            "weighted": st.booleans(),
            "user": st.just("nobody"),
        }
    ),
}


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def program(words: list[str], address: str) -> str:
    return quoted(
        " ".join(f"'{each}'" if " " in each else each.replace("{address}", address) for each in words)
    )


def web(check: dict[str, Any], address: str) -> Iterator[str]:
    yield "url {"
    yield f"path {quoted(check['path'])}"
    yield f"status_code {' '.join(check['status'])}"
    if "host" in check:
        yield f"virtualhost {check['host']}"
    if "expect" in check:
        yield f"regex {quoted(check['expect'])}"
    yield "}"


def misc(check: dict[str, Any], address: str) -> Iterator[str]:
    yield f"misc_path {program(check['run'], address)}"
    yield f"misc_timeout {check['timeout_s']}"
    yield f"user {check['user']}"
    if check["weighted"]:
        yield "misc_dynamic"


def question(check: dict[str, Any], address: str) -> Iterator[str]:
    yield f"name {check['name']}"
    yield f"type {check['record']}"


def nothing(check: dict[str, Any], address: str) -> Iterator[str]:
    yield from ()


AS_KEEPALIVED: dict[str, tuple[str, Callable[[dict[str, Any], str], Iterator[str]]]] = {
    "tcp": ("TCP_CHECK", nothing),
    "icmp": ("PING_CHECK", nothing),
    "smtp": ("SMTP_CHECK", nothing),
    "http": ("HTTP_GET", web),
    "dns": ("DNS_CHECK", question),
    "command": ("MISC_CHECK", misc),
}


def as_keepalived(found: list[dict[str, Any]], grouped: bool) -> Iterator[str]:
    for row, service in enumerate(found):
        protocol, port = listener(service)
        where = f"{service['vips'][0]} {port or ''}"
        if grouped:
            yield f"virtual_server_group g{row} {{\n    {where} # its only one\n}}"
        yield f"virtual_server {f'group g{row}' if grouped else where} {{"
        yield f"    lvs_sched {service['scheduler']}"
        yield "    lb_kind NAT"
        yield f"    protocol {protocol.upper()}"
        yield from persistence(
            service, "    persistence_timeout {}", "    persistence_granularity {}", "    ops"
        )
        if service.get("initial") == "down":
            yield "    alpha"
        if service.get("on_down") == "keep":
            yield "    inhibit_on_failure"
        if "quorum" in service:
            yield f"    quorum {service['quorum']}"
            yield f"    quorum_up {program(service['quorum_up'], '')}"
        for each in service["backends"]:
            address, own = endpoint(each["address"], port)
            if each.get("backup"):
                yield f"    sorry_server {address} {own or ''}"
                continue
            yield f"    real_server {address} {own or ''} {{"
            yield f"        weight {each['weight']} ! its share"
            if "most_flows" in each:
                yield f"        uthreshold {each['most_flows']}"
            for check in service.get("checks", ()):
                name, inside = AS_KEEPALIVED[check["type"]]
                yield f"        {name}\n        {{"
                yield f"            delay_loop {check['interval_s']}"
                if name != "MISC_CHECK":
                    yield f"            connect_timeout {check['timeout_s']}"
                yield f"            retry {check['fall'] - 1}"
                yield f"            delay_before_retry {check['fast_interval_s']}"
                if "port" in check:
                    yield f"            connect_port {check['port']}"
                yield from inside(check, address)
                yield "        }"
            yield "    }"
        yield "}"


@given(of_keepalived(), st.booleans())
@settings(max_examples=40)
def test_what_keepalived_reads_comes_back(ours: list[dict[str, Any]], grouped: bool) -> None:
    assert_same(imported("\n".join(as_keepalived(ours, grouped))), ours)


@st.composite
def of_haproxy(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Services that HAProxy can have in mode tcp."""
    found: list[dict[str, Any]] = []
    for row in range(draw(st.integers(1, 3))):
        prefix = draw(OURS)
        ports = draw(st.lists(st.integers(1, 60_000), min_size=1, max_size=2, unique=True))
        vips = draw(st.integers(1, 2))
        source = draw(st.booleans())
        service: dict[str, Any] = {
            "name": f"s{row}",
            "vips": [f"{prefix}{row * 10 + each + 100}" for each in range(vips)],
            "listen": [f"tcp/{port}" for port in ports],
            "scheduler": draw(st.sampled_from(["sh", "mh"] if source else ["wrr", "wlc", "twos"])),
            "affinity": "source" if source else "connection",
            "backends": draw(backends(prefix, 256, ports[0] if len(ports) == 1 else None)),
        }
        if draw(st.booleans()):
            service["tcp_idle_s"] = draw(st.integers(1, 86_400))
        if draw(st.booleans()):
            service["slow_start_s"] = draw(st.integers(1, 600))
        if draw(st.booleans()):
            interval = draw(st.sampled_from([0.5, 1, 2, 30]))
            check: dict[str, Any] = {
                "port": draw(st.integers(1, 65_535)),
                "interval_s": interval,
                "timeout_s": interval,
            }
            check |= {"rise": draw(st.integers(1, 100)), "fall": draw(st.integers(1, 100))}
            check |= draw(WEB)
            service["checks"] = [check]
        for number, each in enumerate(service["backends"]):
            each |= {"name": f"b{number}", "backup": number > 0 and draw(st.booleans())}
        if not any(each["weight"] for each in service["backends"]):
            service["all_zero"] = True
        found.append(service)
    return found


WEB: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"type": "tcp"},
        {"type": "tcp", "send": "PING \\ #1\r\n", "expect": "^\\+PONG 'a' \"b\""},
        {"type": "smtp"},
        {"type": "http", "method": "HEAD", "path": "/a#b", "status": ["200", "204"], "host": "a.b"},
    ]
)


def escaped(text: str) -> str:
    """A word, as HAProxy wants it without quotes."""
    for character in "\\ #'\"":
        text = text.replace(character, f"\\{character}")
    return text.replace("\r", "\\r").replace("\n", "\\n")


def check_lines(check: dict[str, Any]) -> Iterator[str]:
    if check["type"] == "smtp":
        yield "option smtpchk"
    elif check["type"] == "http":
        yield f"option httpchk {check['method']} {escaped(check['path'])}"
        yield f"http-check send hdr Host {check['host']}"
        yield f"http-check expect status {','.join(check['status'])}"
    elif "send" in check:
        yield "option tcp-check"
        yield f"tcp-check send {escaped(check['send'])}"
        yield f"tcp-check expect rstring {escaped(check['expect'])}"


def as_haproxy(found: list[dict[str, Any]], in_two: bool) -> Iterator[str]:
    yield "defaults\n    mode tcp"
    for row, service in enumerate(found):
        yield f"{'frontend' if in_two else 'listen'} s{row}"
        ports = [int(each.partition("/")[2]) for each in service["listen"]]
        for port in ports:
            yield f"    bind {','.join(at(vip, port) for vip in service['vips'])}"
        if "tcp_idle_s" in service and in_two:
            yield "    timeout client 1s"
        if in_two:
            yield f"    default_backend b{row}\nbackend b{row}"
        if "tcp_idle_s" in service:
            yield f"    timeout server {service['tcp_idle_s']}s"
        yield f"    balance {BALANCE[service['scheduler']]}"
        if service["scheduler"] == "mh":
            yield "    hash-type consistent"
        for check in service.get("checks", ()):
            yield from check_lines(check)
        yield "    option allbackups"
        for each in service["backends"]:
            address, own = endpoint(each["address"], ports[0] if len(ports) == 1 else None)
            words = [f"    server {each['name']} {at(address, own) if own else address_alone(address)}"]
            words += [f"weight {each['weight']}"]
            words += ["backup"] if each["backup"] else []
            words += [f"maxconn {each['most_flows']}"] if "most_flows" in each else []
            words += [f"slowstart {service['slow_start_s']}s"] if "slow_start_s" in service else []
            for check in service.get("checks", ()):
                words += [f"check port {check['port']} inter {round(check['interval_s'] * 1000)}"]
                words += [f"rise {check['rise']} fall {check['fall']}"]
            yield " ".join(words)


BALANCE = {"wrr": "roundrobin", "wlc": "leastconn", "twos": "random", "sh": "source", "mh": "source"}


def address_alone(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@given(of_haproxy(), st.booleans())
@settings(max_examples=40)
def test_what_haproxy_reads_comes_back(ours: list[dict[str, Any]], in_two: bool) -> None:
    assert_same(imported("\n".join(as_haproxy(ours, in_two))), ours)


# --- Whatever is in a file, what is written loads, and nothing else happens.

WORDS = sorted({word for path in EXAMPLES.iterdir() for word in path.read_text().split()})
LINES = st.lists(
    st.sampled_from(WORDS)
    | st.sampled_from(['"', "'", "\\", "{", "}", "#", "$a", "9" * 30, "[", "]:", "-1"]),
    max_size=6,
).map(" ".join)


@given(
    st.sampled_from(["lvs.rules", "keepalived.conf", "haproxy.cfg"]),
    st.lists(st.tuples(st.integers(0, 100), st.booleans(), LINES | st.text(max_size=20)), max_size=8),
)
@settings(max_examples=70)
def test_what_is_written_loads_whatever_is_read(name: str, edits: list[tuple[int, bool, str]]) -> None:
    lines = (EXAMPLES / name).read_text().splitlines()
    for place, replace, line in edits:
        lines[place % len(lines) : place % len(lines) + replace] = [line]
    text = "\n".join(lines)
    for reader in READERS:
        if reader.knows(text):
            found = written([reader.read(text, "f")], ["192.0.2.99"])
            services(found)
            if found.toml:
                tomllib.loads(found.toml)


@pytest.mark.parametrize(
    "text",
    [
        "virtual_server_group g {\n"
        + "".join(f" 10.0.{row * 4}.0-10.0.{row * 4 + 3}.255 80\n" for row in range(6))
        + "}\nvirtual_server group g {\n real_server 10.9.0.1 80 {\n }\n}",
        "virtual_server 192.0.2.10 80 {\n" + "a {\n" * 10_000,
        "virtual_server_group g {\n"
        + "".join(f" 192.0.2.1 {port}\n" for port in range(1, 3_000))
        + "}\nvirtual_server group g {\n"
        + "".join(f" real_server 10.{row}.0.1 80 {{\n }}\n" for row in range(200))
        + "}\n",
        '-A -t 192.0.2.10:80 -s "' + "a" * 100_000,
        "listen a\n mode tcp\n bind " + "192.0.2.10:80," * 30_000,
        "defaults\n mode tcp\n" + " balance source\n" * 5_000 + "listen a\n" * 5_000,
    ],
    ids=["ranges", "depth", "product", "quote", "binds", "sections"],
)  # fmt: skip
def test_what_is_too_much_is_named(text: str) -> None:
    found = imported(text)
    assert found.left_out


# --- The command.


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


def test_the_command_writes_what_loads(tmp_path: Path) -> None:
    source, target = tmp_path / "a.rules", tmp_path / "o.toml"
    source.write_text(filled(LVS))
    result = invoke(source, "-o", target)
    assert (result.exit_code, result.output) == (0, "")
    assert target.read_text() == invoke(source).stdout
    assert "a.rules:1 -s rr" in target.read_text()
    checked = CliRunner().invoke(main, ["check-config", "-c", str(target)])
    assert (checked.exit_code, "the configuration is good" in checked.output) == (0, True)


def test_the_command_says_what_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "a.conf"
    source.write_text(filled(KEEPALIVED, service="sorry_server 10.0.0.9 80\n omega"))
    result = invoke(source)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "note: a.conf:3: sorry_server 10.0.0.9 80: "
        "it serves while no other backend can, and is checked as they are",
        "left out: a.conf:4: omega: a stop runs no command: quorum_down stays for the operator to run",
        "1 word is left out",
    ]
    parse_toml(result.stdout, "o").config()


def test_the_command_reads_standard_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["import", "-"], input=filled(LVS))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "# standard input:1 -s rr" in result.stdout
    too_long = CliRunner().invoke(main, ["import", "-"], input=filled(LVS) * 20_000)
    assert (too_long.exit_code, "too large" in too_long.stderr) == (2, True)


def test_the_command_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    other = tmp_path / "a.txt"
    other.write_text("hello")
    assert (invoke(other).exit_code, "none of these" in invoke(other).stderr) == (2, True)
    assert invoke(tmp_path / "nothing").exit_code == 2
    assert invoke().exit_code == 2
    only_http = tmp_path / "a.cfg"
    only_http.write_text("listen a\n mode http\n bind :80\n")
    result = invoke(only_http)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "Error: no service can be carried over, so nothing is written"


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.rules" for folder in ("x", "y")]
    for path, vip in zip(paths, ("192.0.2.10", "192.0.2.11"), strict=True):
        path.parent.mkdir()
        path.write_text(filled(LVS).replace("192.0.2.10", vip))
    result = invoke(*paths)
    assert result.exit_code == 0
    assert all(f"{path}:1 -s rr" in result.stdout for path in paths)
