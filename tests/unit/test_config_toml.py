"""TOML: what is read, where mistakes are, and that what is written reads the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from loaded_mp.checks import CHECKS
from loaded_mp.checks.check import Expression
from loaded_mp.checks.tcp import TcpCheck as Check
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Backend, Config, Discovery, NetworkSetup, Observe, Service, Tunnel
from loaded_mp.config.toml import parse_toml, read_toml, to_toml
from loaded_mp.fields import Listener

pytestmark = pytest.mark.uncompiled

EXAMPLE = Path(__file__).parents[2] / "deploy/loaded-mp.toml"
GOOD = """
workers = 4
[network]
public_interface = "eth0"
[[service]]
name = "web"
vips = ["192.0.2.10/24"]
listen = ["tcp/80", "udp/5000-5010", "icmp"]
[service.check]
port = 80
[[service.backend]]
address = "10.0.0.1"
weight = 3
[[service.backend]]
address = "10.0.0.2"
[[service]]
name = "dns"
vips = ["192.0.2.11"]
[[service.backend]]
address = "10.0.0.3"
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_toml(text, "f").config()
    return [str(each) for each in raised.value.mistakes]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_tables_become_services_with_backends() -> None:
    config = parse_toml(GOOD, "f").config()
    web, dns = config.services
    assert (web.name, dns.name, config.workers) == ("web", "dns", 4)
    assert [(str(each.address), each.weight) for each in web.backends] == [("10.0.0.1", 3), ("10.0.0.2", 1)]
    assert [str(each) for each in web.listen] == ["tcp/80", "udp/5000-5010", "icmp"]
    assert web.checks == (Check(port=80),)
    assert dns.checks == ()
    assert str(web.vips[0]) == "192.0.2.10/24"
    assert str(dns.vips[0]) == "192.0.2.11/32"


def test_the_example_is_good_and_names_every_setting() -> None:
    read_toml(EXAMPLE).config()
    text = EXAMPLE.read_text()
    models: list[type[BaseModel]] = [
        Config,
        NetworkSetup,
        Service,
        Observe,
        Discovery,
        Tunnel,
        Backend,
        *CHECKS,
    ]
    for model in models:
        for name in set(model.model_fields) - {
            "services",
            "network",
            "checks",
            "discovery",
            "observe",
            "tunnel",
            "backends",
        }:
            assert re.search(rf"^#?{name} = ", text, re.MULTILINE), name


def test_the_example_shows_the_defaults() -> None:
    text = EXAMPLE.read_text()
    shown = dict(re.findall(r'^(\w+) = ("[^"]*"|\S+) +#.*default: \2$', text, re.MULTILINE))
    fields = Config.model_fields | Service.model_fields | Check.model_fields
    for name in (
        "queue_length",
        "flows",
        "log_level",
        "metrics_listen",
        "tcp_idle_s",
        "rise",
        "timeout_s",
    ):
        assert shown[name].strip('"') == str(fields[name].default)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("workers = 4", "workers = 0", "f:2: workers: found 0, expected greater than or equal to 1"),
        ("workers = 4", "workers = true", "f:2: workers: found True, expected no true or false"),
        ("workers = 4", "workers = 'x'", "f:2: workers: found 'x', expected a whole number"),
        ("workers = 4", "wokers = 4", "f:2: wokers: no such setting"),
        ("workers = 4", "metrics_listen = '::1:9'", "f:2: metrics_listen: found '::1:9', expected HOST:PORT"),
        ('"eth0"', '"eth0/1"', "f:4: network.public_interface: found 'eth0/1', expected the name"),
        ('"eth0"', "7", "f:4: network.public_interface: found 7, expected text"),
        ('name = "web"', 'name = "a b"', "f:6: service.name: found 'a b', expected letters,"),
        ('name = "web"\n', "", "f:5: service.name: missing, expected a value"),
        ('"192.0.2.10/24"', "", "f:7: service.vips: found none, expected at least one"),
        ('"192.0.2.10/24"', '"x"', "f:7: service.vips: found 'x', expected an address"),
        ('["192.0.2.10/24"]', '"192.0.2.10"', "f:7: service.vips: found '192.0.2.10', expected a list"),
        ('"tcp/80"', '"tcp/0"', "f:8: service.listen: found 'tcp/0', expected a port or a range"),
        ('"tcp/80"', "80", "f:8: service.listen: found 80, expected text as in tcp/80"),
        ("port = 80", "port = 65536", "f:10: service.check.port: found 65536, expected less than"),
        ("port = 80", "", "f:9: service.check.port: missing, expected a port, as listen does not name"),
        ('"10.0.0.2"', '"10.0.0.300"', "f:15: service.backend.address: found '10.0.0.300', expected an IPv4"),
        ('"10.0.0.2"', "167772162", "f:15: service.backend.address: found 167772162, expected an IPv4"),
        ("weight = 3", "weight = -1", "f:13: service.backend.weight: found -1, expected greater"),
        ("weight = 3", "weight = [3]", "f:13: service.backend.weight: found a list, expected a whole number"),
        ("weight = 3", "wieght = 3", "f:13: service.backend.wieght: no such setting"),
        ("[network]", "[netwrok]", "f:3: netwrok: no such setting"),
    ],
)  # fmt: skip
def test_a_mistake_and_its_place(old: str, new: str, expected: str) -> None:
    (found,) = mistakes(changed(old, new))
    assert found.startswith(expected)


def test_names_of_the_model_are_unknown_in_a_file() -> None:
    text = GOOD.replace('[[service]]\nname = "dns"', '[[services]]\nname = "dns"').replace(
        '\n[[service.backend]]\naddress = "10.0.0.3"', ""
    )
    assert mistakes(text) == ["f:16: services: no such setting"]
    text = changed('name = "web"', 'name = "web"\nbackends = ["10.0.0.4"]')
    assert mistakes(text) == ["f:7: service.backends: no such setting"]


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    text = GOOD
    for old, new in (
        ("workers = 4", "workers = 0"),
        ('"10.0.0.2"', '"10.0.0.1"'),
        ('"192.0.2.11"', '"192.0.2.10"'),
        ("port = 80", "port = 0"),
        ('listen = ["tcp/80", "udp/5000-5010", "icmp"]\n', "\n"),
        ('"10.0.0.3"', '"nonsense"'),
    ):
        text = text.replace(old, new)
    assert mistakes(text) == [
        "f:2: workers: found 0, expected greater than or equal to 1",
        "f:10: service.check.port: found 0, expected greater than or equal to 1",
        "f:15: service.backend.address: found 10.0.0.1 twice in the service, expected it once (use weight)",
        "f:18: service.vips: 192.0.2.10 is answered by service 'web' already, expected other ports",
        "f:20: service.backend.address: found 'nonsense', expected an IPv4 or IPv6 address, also as"
        " 10.0.0.1:80, [fd00::1]:80",
    ]


def test_lines_of_other_layouts() -> None:
    """Dotted and quoted keys, lists over several lines, carriage returns."""
    text = (
        'network.public_interface = ""\r\n"workers" = 0\r\n[[ service ]]\r\nname = "a"\r\nvips = [\r\n'
        '  "192.0.2.10",\r\n  "x",\r\n]\r\nbackend = [{ address = "y" }]\r\n'
    )
    assert [line.partition(": ")[0] for line in mistakes(text)] == ["f:1", "f:2", "f:5", "f:9"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a = 1\nb = ", "f:2: not TOML: "),
        ("a = 1\na = 2", "f:2: not TOML: "),
        ("[[service]\n", "f:1: not TOML: "),
        (f"flows = 0x{'f' * 9000}", "f:1: flows: found a huge number"),
        (f"flows = {'9' * 9000}", "f: not TOML: "),
        (f"x = {'[' * 9000}", "f: not TOML: "),
        (f"[{'network.' * 3000}x]", "f:1: network.network: no such setting"),
        (f"user = 3\nname = {'9' * 4000}", "f:1: user: found 3, expected text"),
        ("flows = 1979-05-27", "f:1: flows: found 1979-05-27, expected a whole number"),
        (f"flows = '{'x' * 500}'", f"f:1: flows: found '{'x' * 99}..., expected a whole number"),
        ("service = 3", "f:1: service: found 3, expected a list"),
        ("service = [3]", "f:1: service: found 3, expected a table"),
    ],
)
def test_odd_files(text: str, start: str) -> None:
    assert any(line.startswith(start) for line in mistakes(text)), mistakes(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"user = '\xff'")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "bytes.toml", Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_toml(path)


@given(st.text() | st.lists(st.sampled_from(GOOD.splitlines())).map("\n".join))
def test_no_text_raises_anything_else(text: str) -> None:
    found: tuple[Mistake, ...] = ()
    try:
        parse_toml(text, "f").config()
    except ConfigError as error:
        found = error.mistakes
    assert all("\n" not in str(each) for each in found)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("10.0.0.1")
_KEYS = st.sampled_from(
    sorted({"services", *Config.model_fields, *Service.model_fields, *Backend.model_fields, "port", "x"})
)
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4)
)


@given(st.dictionaries(_KEYS, _ANYTHING), st.lists(st.dictionaries(_KEYS, _ANYTHING)))
def test_no_shape_of_data_raises_anything_else(data: dict[str, Any], services: list[Any]) -> None:
    draft = parse_toml("", "f")
    draft.data = {**data, "services": services}
    with pytest.raises(ConfigError):
        draft.config()


_BACKEND = st.builds(
    lambda host, weight, name: {"address": f"10.0.0.{host}", "weight": weight, "name": name},
    st.integers(1, 250),
    st.integers(0, 65_535),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
_LISTENER = st.one_of(
    st.sampled_from(["tcp", "udp", "icmp"]).map(lambda text: {"protocol": text}),
    st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)).map(
        lambda ports: {"protocol": "tcp", "first_port": min(ports), "last_port": max(ports)}
    ),
)
_SECONDS = st.floats(0.001, 86_400)


def _is_expression(text: str) -> bool:
    try:
        TypeAdapter(Expression).validate_python(text)
    except ValidationError:
        return False
    return True


_CHECK = st.fixed_dictionaries(
    {"port": st.integers(1, 65_535)},
    optional={"interval_s": _SECONDS, "timeout_s": _SECONDS, "rise": st.integers(1, 100)},
) | st.fixed_dictionaries(
    {"type": st.just("http")},
    optional={
        "expect": st.text('a\\b"\n', max_size=3).filter(_is_expression),
        "status": st.just((200, "300-399")),
        "headers": st.just(("Accept: */*",)),
        "address": st.just("fd00::9"),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    services = [
        {
            "name": f"s{number}",
            "vips": [f"192.0.{number + 2}.1/{draw(st.integers(1, 32))}"],  # no networks: they might overlap
            "listen": draw(st.lists(_LISTENER, max_size=3)),
            "scheduler": draw(st.sampled_from(["rr", "wrr"])),
            "checks": draw(st.lists(_CHECK, max_size=3)),
            "tcp_idle_s": draw(st.integers(1, 604_800)),
            "all_zero": True,
            "backends": draw(
                st.lists(_BACKEND, min_size=1, max_size=4, unique_by=lambda each: each["address"])
            ),
        }
        for number in range(draw(st.integers(1, 3)))
    ]
    more = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "workers": st.none() | st.integers(1, 64),
                "user": st.text(st.characters(codec="utf-8"), min_size=1),
                "metrics_listen": st.sampled_from(["", "[::1]:9", "localhost:65535"]),
                "network": st.fixed_dictionaries(
                    {},
                    optional={
                        "masquerade": st.booleans(),
                        "public_interface": st.sampled_from(["eth0", 'a"b\\', "ü"]),
                        "backend_networks": st.just(["10.0.0.0/8", "fd00::/64"]),
                        "broadcast": st.just("10.0.0.255"),
                    },
                ),
            },
        )
    )
    return Config.model_validate({"services": services, **more})


@given(configs())
def test_what_is_written_reads_the_same(config: Config) -> None:
    assert parse_toml(to_toml(config), "f").config() == config


@pytest.mark.parametrize("text", ["tcp/", "tcp/80-", "tcp/90-80", "icmp/1", "dccp", "", "tcp/1-2-3", "tcp/-"])
def test_what_no_listener_is(text: str) -> None:
    with pytest.raises(ValidationError, match="expected"):
        Listener.model_validate(text)


def test_a_listener_as_a_table_has_a_range_too() -> None:
    with pytest.raises(ValidationError, match="not below first_port"):
        Listener.model_validate({"protocol": "tcp", "first_port": 2, "last_port": 1})


@pytest.mark.parametrize(
    ("lines", "mistakes"),
    [
        ('type = "tcp"\nrise = 300', ["f.toml:5: service.check.port", "f.toml:7: service.check.rise"]),
        ('type = "tpc"\nport = 80', ["f.toml:6: service.check.type: found 'tpc', expected one of 'tcp'"]),
        ("port = 80\npth = 1", ["f.toml:7: service.check.pth: no such setting"]),
    ],
)
def test_mistakes_in_a_check_stand_where_they_were_made(lines: str, mistakes: list[str]) -> None:
    text = (
        '[[service]]\nname = "web"\nvips = ["192.0.2.10"]\nbackend = [{address = "10.0.0.1"}]\n'
        f"[service.check]\n{lines}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "f.toml").config()
    said = [str(each) for each in caught.value.mistakes]
    assert len(said) == len(mistakes)
    for one, begin in zip(said, mistakes, strict=True):
        assert one.startswith(begin)


@pytest.mark.parametrize(
    ("lines", "mistakes"),
    [
        (
            "[[service.check]]\nport = 80\n[[service.check]]\nport = 0",
            ["f.toml:8: service.check.port: found 0"],
        ),
        (
            '[[service.check]]\ntype = "http"\nexpect = "(a"\nstatus = [99]',
            [
                "f.toml:7: service.check.expect: found '(a', expected a regular",
                "f.toml:8: service.check.status",
            ],
        ),
        (
            '[service.check]\ntype = "http"\nheaders = ["A b: c"]',
            ["f.toml:7: service.check.headers: found 'A b: c'"],
        ),
        (
            '[service.check]\ntype = "https"\nca_file = "/nowhere"\nverify = true',
            ["f.toml:7: service.check.ca_file: "],
        ),
        (
            '[service.check]\ntype = "dns"\nname = "a..b"',
            ["f.toml:7: service.check.name: found 'a..b', expec"],
        ),
        (
            '[service.check]\ntype = "command"\nrun = ["true"]\nuser = "noone"',
            [
                "f.toml:7: service.check.run: found a list, expected a program",
                "f.toml:8: service.check.user",
            ],
        ),
        (
            '[service.check]\ntype = "tcp"\nport = 1\nsend = "€"',
            ["f.toml:8: service.check.send: found '€', exp"],
        ),
        ("check = 7", ["f.toml:5: service.check: found 7, expected a list"]),
    ],
)
def test_mistakes_in_checks_of_other_types(lines: str, mistakes: list[str]) -> None:
    text = (
        f'[[service]]\nname = "web"\nvips = ["192.0.2.10"]\nbackend = [{{address = "10.0.0.1"}}]\n{lines}\n'
    )
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "f.toml").config()
    said = [str(each) for each in caught.value.mistakes]
    assert len(said) == len(mistakes), said
    for one, begin in zip(said, mistakes, strict=True):
        assert one.startswith(begin)


def test_settings_of_a_tunnel_are_written_as_they_are_read() -> None:
    text = GOOD.replace('name = "web"', 'name = "web"\nforwarding = "tunnel"', 1)
    text = text.replace(
        "[[service.backend]]",
        '[service.tunnel]\nkind = "gue"\nport = 7000\nsources = ["10.9.0.0/16"]\n[[service.backend]]',
        1,
    )
    config = parse_toml(text, "f").config()
    assert config.services[0].tunnel == Tunnel.model_validate(
        {"kind": "gue", "port": 7000, "sources": ["10.9.0.0/16", "100::/64"]}
    )
    assert parse_toml(to_toml(config), "f").config() == config


def test_a_port_is_for_gue_alone() -> None:
    text = GOOD.replace('name = "web"', 'name = "web"\nforwarding = "tunnel"\ntunnel = { port = 7000 }', 1)
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "f").config()
    (mistake,) = caught.value.mistakes
    assert "found 7000, expected none: IP in IP has no ports" in str(mistake)
