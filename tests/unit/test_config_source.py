"""Flags instead of a file, flags that win over a file, and reading again."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaded_mp.checks.tcp import TcpCheck as Check
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config
from loaded_mp.config.source import Source

TOML = """
workers = 2
[[service]]
name = "web"
vips = ["192.0.2.10"]
check = { port = 80, rise = 5 }
[[service.backend]]
address = "10.0.0.1"
"""
CLASSIC = "VIP4=192.0.2.10\nserver4=10.0.0.1\nFIRST_CORE=2\nLAST_CORE=4\n"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.toml").write_text(TOML)
    Path("f").write_text(CLASSIC)


def load(**given: Any) -> Config:
    return Source(**given).load()


def mistakes(**given: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(**given)
    return [str(each) for each in raised.value.mistakes]


def test_flags_alone_make_a_service() -> None:
    config = load(
        vips=("192.0.2.10", "2001:db8::10"),
        backends=("10.0.0.1", "10.0.0.2,weight=3", "fd00::1,name=web1,weight=0"),
        ports=("tcp/80", "icmp"),
        check_port="80",
    )
    (service,) = config.services
    assert [str(each.ip) for each in service.vips] == ["192.0.2.10", "2001:db8::10"]
    assert [(str(each.address), each.weight, each.name) for each in service.backends] == [
        ("10.0.0.1", 1, ""),
        ("10.0.0.2", 3, ""),
        ("fd00::1", 0, "web1"),
    ]
    assert [str(each) for each in service.listen] == ["tcp/80", "icmp"]
    assert service.checks == (Check(port=80),)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"backends": ("10.0.0.300",)}, "--backend 10.0.0.300: found '10.0.0.300', expected an IPv4"),
        ({"backends": ("10.0.0.1,weight=x",)}, "--backend 10.0.0.1,weight=x: found 'x', expected a whole"),
        ({"backends": ("10.0.0.1,3",)}, "--backend 10.0.0.1,3: found '3', expected weight=N or name=NAME"),
        ({"backends": ("10.0.0.1", "10.0.0.1")}, "--backend 10.0.0.1: found 10.0.0.1 twice in the service"),
        ({"backends": ()}, "--backend: found none, expected at least one"),
        ({"backends": ("192.0.2.10",)}, "--vip 192.0.2.10: 192.0.2.10 is a backend too"),
        ({"vips": ()}, "--vip: found none, expected at least one"),
        ({"vips": ("x",)}, "--vip x: found 'x', expected an address"),
        ({"ports": ("80",)}, "--port 80: found '80', expected tcp, udp, sctp, icmp"),
        ({"check_port": "http"}, "--check-port http: found 'http', expected a whole number"),
        ({"failover": True}, "-f: expected --check-port PORT beside it"),
        ({"path": Path("f")}, "-c f: found a file and --vip or --backend, expected one of them"),
        ({"overrides": (("workers", "0", "--workers"),)}, "--workers 0: found '0', expected greater than"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_flag(given_: dict[str, Any], expected: str) -> None:
    (found,) = mistakes(**{"vips": ("192.0.2.10",), "backends": ("10.0.0.1",), **given_})
    assert found.startswith(expected)


def test_mistakes_of_flags_and_of_a_file_come_together() -> None:
    Path("f.toml").write_text(TOML.replace("10.0.0.1", "x"))
    found = mistakes(path=Path("f.toml"), overrides=(("user", "", "-U"),), ports=("tcp",), failover=True)
    assert [each.split(": ")[0] for each in found] == ["--port tcp", "-U ", "-f", "f.toml:8"]


def test_the_name_says_what_kind_of_file_it_is() -> None:
    assert load(path=Path("f.toml")).services[0].name == "web"
    assert load(path=Path("f")).services[0].name == "ipv4"


@pytest.mark.parametrize("name", ["f.toml", "f"])
def test_flags_win_over_the_file(name: str) -> None:
    overrides = (
        ("workers", "7", "--workers"),
        ("queue_length", "100", "-Q"),
        ("user", "daemon", "-U"),
        ("first_queue", "5", "--first-queue"),
    )
    config = load(path=Path(name), overrides=overrides)
    assert (config.workers, config.queue_length, config.user, config.first_queue) == (7, 100, "daemon", 5)


def test_workers_win_over_cores() -> None:
    config = load(path=Path("f"))
    assert (config.workers, config.first_queue) == (3, 2)
    config = load(path=Path("f"), overrides=(("workers", "8", "--workers"),))
    assert (config.workers, config.first_core, config.last_core) == (8, 2, 4)


def test_a_port_to_check_wins_and_switches_checks_on() -> None:
    assert load(path=Path("f.toml"), check_port="8080").services[0].checks == (Check(port=8080, rise=5),)
    assert load(path=Path("f"), check_port="8080").services[0].checks == (Check(port=8080),)
    assert load(path=Path("f"), check_port="8080", failover=True).services[0].checks == (Check(port=8080),)


def test_failover_needs_a_port() -> None:
    assert mistakes(path=Path("f"), failover=True) == [
        "-f: port_alive: missing, expected a port, as listen does not name just one"
    ]
    Path("f").write_text(CLASSIC + "port_alive=80")
    assert load(path=Path("f"), failover=True).services[0].checks == (Check(port=80),)


def test_default_files() -> None:
    (found,) = mistakes()
    assert found.startswith("loaded.config: there is no such file here; name one with -c FILE, or give --vip")
    (found,) = mistakes(families=(6,))
    assert found.startswith("loaded.config6: there is no such file here")
    Path("loaded.config").write_text(CLASSIC)
    assert load() == load(path=Path("f"))


def test_a_source_is_read_again_wherever_it_is_taken() -> None:
    source = pickle.loads(pickle.dumps(Source(path=Path("f.toml"))))
    assert source.load().workers == 2
    Path("f.toml").write_text(TOML.replace("workers = 2", "workers = 3"))
    assert source.load().workers == 3
    Path("f.toml").write_text("nonsense")
    with pytest.raises(ConfigError):
        source.load()


_TEXTS = st.tuples() | st.tuples(st.text() | st.sampled_from(["192.0.2.10", "10.0.0.1,weight=2", "tcp/80"]))


@given(_TEXTS, _TEXTS, _TEXTS, st.none() | st.text())
def test_no_flags_raise_anything_else(vips: Any, backends: Any, ports: Any, check_port: str | None) -> None:
    try:
        Source(vips=vips, backends=backends, ports=ports, check_port=check_port).load()
    except ConfigError as error:
        found = error.mistakes
    else:
        found = ()
    assert found or (vips and backends)
