"""The classic files: what is read, what is passed over, and that nothing is executed."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaded_mp.checks.tcp import TcpCheck as Check
from loaded_mp.config.classic import Family, read_classic
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Config, Discovery
from loaded_mp.config.source import Source
from loaded_mp.config.toml import parse_toml, to_toml

pytestmark = pytest.mark.uncompiled

DEPLOY = Path(__file__).parents[2] / "deploy"
GOOD = """\
#!/bin/sh
VIP4=192.0.2.10    # the one
server4=10.0.0.1 weight=3
server4=10.0.0.2
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "f"


def read(path: Path, text: str, family: Family = 4) -> Config:
    path.write_text(text)
    return read_classic(path, family).config()


def mistakes(path: Path, text: str, family: Family = 4) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(path, text, family)
    return [str(each).removeprefix(str(path.parent) + "/") for each in raised.value.mistakes]


def test_the_ipv4_example() -> None:
    config = read_classic(DEPLOY / "loaded.config", 4).config()
    (service,) = config.services
    assert [str(each) for each in service.vips] == ["192.0.2.10/24"]
    assert [(str(each.address), each.weight) for each in service.backends] == [
        ("10.0.0.1", 3),
        ("10.0.0.2", 1),
        ("10.0.0.3", 1),
    ]
    assert (service.scheduler, service.listen, service.checks) == ("wrr", (), (Check(port=80, interval_s=2),))
    network = config.network
    assert (network.public_interface, network.private_interface) == ("eth0", "eth1")
    assert [str(each) for each in network.public_addresses] == ["192.0.2.2/24"]
    assert [str(each) for each in network.private_addresses] == ["10.0.0.254/24"]
    assert [str(each) for each in network.backend_networks] == ["10.0.0.0/24"]
    assert [str(each) for each in network.name_servers] == ["192.0.2.53"]
    assert str(network.broadcast) == "10.0.0.255"
    assert (config.first_queue, config.workers, config.first_core, config.last_core) == (0, 4, 0, 3)
    assert config.queue_length == 65_536


def test_the_ipv6_example() -> None:
    config = read_classic(DEPLOY / "loaded.config6", 6).config()
    (service,) = config.services
    assert [str(each) for each in service.vips] == ["2001:db8::10/64"]
    assert [str(each.address) for each in service.backends] == ["fd00::1", "fd00::2", "fd00::3"]
    assert [str(each) for each in config.network.private_addresses] == ["fd00::fe/64"]
    assert [str(each) for each in config.network.backend_networks] == ["fd00::/64"]


def test_both_examples_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEPLOY)
    config = Source(families=(4, 6)).load()
    assert [each.name for each in config.services] == ["ipv4", "ipv6"]
    assert [str(each) for each in config.network.private_addresses] == ["10.0.0.254/24", "fd00::fe/64"]


def test_little_is_needed(path: Path) -> None:
    config = read(path, GOOD)
    assert config.services[0].checks == ()
    assert (config.workers, config.first_core, config.network.backend_networks) == (None, None, ())


@pytest.mark.parametrize("length", ["24", "/24", "255.255.255.0", "192.0.2.0/24", "192.0.2.0/255.255.255.0"])
def test_networks_as_people_write_them(path: Path, length: str) -> None:
    backends = length.replace("192.0.2", "10.0.0")
    config = read(
        path, f"{GOOD}VIP4net={length}\nRIP4={backends}\nprivate_GW=10.0.0.254\npublic_GW=192.0.2.1\n"
    )
    assert str(config.services[0].vips[0]) == "192.0.2.10/24"
    assert [str(each) for each in config.network.public_addresses] == ["192.0.2.1/24"]
    assert [str(each) for each in config.network.private_addresses] == ["10.0.0.254/24"]
    assert [str(each) for each in config.network.backend_networks] == ["10.0.0.0/24"]


def test_a_length_alone_means_the_network_of_the_first_backend(path: Path) -> None:
    assert [str(each) for each in read(path, GOOD + "RIP4=30").network.backend_networks] == ["10.0.0.0/30"]


@pytest.mark.parametrize(("strategy", "scheduler"), [("rr", "rr"), ("weighted", "wrr"), ("wrr", "wrr")])
def test_strategies(path: Path, strategy: str, scheduler: str) -> None:
    assert read(path, f"{GOOD}strategy={strategy}").services[0].scheduler == scheduler


def test_failover_switches_the_checks_on(path: Path) -> None:
    text = GOOD + "port_alive=80\ncheck_cycle=0.5\n"
    assert read(path, text).services[0].checks == ()
    assert read(path, text + "failover  # yes\n").services[0].checks == (Check(port=80, interval_s=0.5),)
    assert read_classic(path, 4, failover=True).config().services[0].checks
    assert mistakes(path, GOOD + "failover") == [
        "f:5: port_alive: missing, expected a port, as listen does not name just one"
    ]


def test_quotes_comments_and_repetition_as_in_a_shell(path: Path) -> None:
    text = (
        "VIP4='192.0.2.10'\r\n# server4=10.0.0.9\nserver4=\"10.0.0.1 weight=3\"#x\n"
        'server4="10.0.0.2" weight=2\nNS="192.0.2.53 192.0.2.54"\nNS=192.0.2.55\n'
    )
    config = read(path, text)
    assert str(config.services[0].vips[0].ip) == "192.0.2.10"
    assert [each.weight for each in config.services[0].backends] == [3, 2]
    assert len(config.network.name_servers) == 3


def test_script_lines_are_passed_over_and_never_executed(path: Path) -> None:
    trace = path.parent / "executed"
    script = f"""
touch {trace}
TOOL=`touch {trace}`
export VIP4=1.2.3.4
if [ -x /sbin/ip ]; then
    VIP4=$(touch {trace})
    ip addr add $VIP4/$VIP4net dev $public_NIC
fi
echo "VIP4=5.6.7.8" failover 'unclosed
server6=not an address
"""
    assert read(path, GOOD + script) == read(path, GOOD)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("VIP4net=99", "VIP4net: found '99', expected a network, a netmask or a prefix length"),
        ("RIP4=nonsense/24", "RIP4: found 'nonsense/24', expected a network, a netmask or a prefix length"),
        ("RIP4=10.0.0.1/24", "RIP4: found '10.0.0.1/24', expected a network as in"),
        ("RIP4=fd00::/64", "RIP4: found 'fd00::/64', expected a network, a netmask or a prefix length"),
        ("NS=$DNS", "NS: found '$DNS', expected a plain value: nothing here is executed"),
        ("NS='`x`'", "NS: found \"'`x`'\", expected a plain value: nothing here is executed"),
        ("NS='x", 'NS: found "\'x", expected closed quotes'),
        ("NS=", "NS: found nothing, expected a value"),
        ("NS=# none", "NS: found nothing, expected a value"),
        ("NS = 192.0.2.53", "NS: found a space beside =, expected NS=VALUE"),
        ("NS= 192.0.2.53", "NS: found a space beside =, expected NS=VALUE"),
        ("NS=x", "NS: found 'x', expected an IPv4 or IPv6 address"),
        ("public_NIC=eth0 eth1", "public_NIC: found 'eth0 eth1', expected one word"),
        ("public_NIC=a/b", "public_NIC: found 'a/b', expected the name of a network interface"),
        ("private_GW=x", "private_GW: found 'x', expected an address"),
        ("broadcast=x", "broadcast: found 'x', expected an IPv4 address"),
        ("nfq_len=0", "nfq_len: found '0', expected greater than or equal to 1"),
        ("nfq_len=many", "nfq_len: found 'many', expected a whole number"),
        ("strategy=random", "strategy: found 'random', expected rr, weighted or wrr"),
        ("FIRST_CORE=x", "FIRST_CORE: found 'x', expected a whole number"),
        ("LAST_CORE=3", "LAST_CORE: expected the first core beside it"),
        ("server4=10.0.0.3 wieght=1", "server4: found 'wieght=1' after the address, expected weight=N"),
        ("server4=10.0.0.3 weight=x", "server4: found 'x', expected a whole number"),
        (
            "server4=10.0.0.300",
            "server4: found '10.0.0.300', expected an IPv4 or IPv6 address, also as",
        ),
        ("server4=10.0.0.2", "server4: found 10.0.0.2 twice in the service"),
        ("server4=fd00::1", "server4: found 'fd00::1', expected an IPv4 address"),
        ("port_alive=80000", "port_alive: found '80000', expected less than or equal to 65535"),
        ("check_cycle=abc", "check_cycle: found 'abc', expected a number"),
        ("check_cycle=0", "check_cycle: found '0', expected greater than 0"),
        ("failover=yes", "failover: found 'failover=yes', expected the word failover alone"),
        ("failover on", "failover: found 'failover on', expected the word failover alone"),
        ("Failover", "Failover: no such word, did you mean failover?"),
        ("fail_over # x", "fail_over: no such word, did you mean failover?"),
        ("servre4=10.0.0.3", "servre4: no such name, did you mean server4?"),
        ("vip4net=24", "vip4net: no such name, did you mean VIP4net?"),
        ("Check_Cycle = 2", "Check_Cycle: no such name, did you mean check_cycle?"),
        ("VIP=192.0.2.11", "VIP: no such name, did you mean VIP4?"),
        ("VIP4=192.0.2.11", "VIP4: found again, expected it once: it is in line 2 already"),
    ],
)
def test_a_mistake_and_its_line(path: Path, line: str, expected: str) -> None:
    (found, *more) = mistakes(path, f"{GOOD}{line}\n")
    assert found.startswith(f"f:5: {expected}")
    assert not more


@pytest.mark.parametrize(
    ("vip", "expected"),
    [
        ("224.0.0.1", "found the multicast address 224.0.0.1"),
        ("2001:db8::1", "found '2001:db8::1', expected an IPv4 address"),
    ],
)
def test_a_vip_that_cannot_be_one(path: Path, vip: str, expected: str) -> None:
    (found,) = mistakes(path, f"VIP4={vip}\nserver4=10.0.0.1\n")
    assert found.startswith(f"f:1: VIP4: {expected}")


@pytest.mark.parametrize(
    "lines",
    [
        "server=x\nip route add $server",  # a variable of the script
        "DNS=192.0.2.53",
        "PATH=/sbin:/usr/sbin",
        "server6=fd00::1\nVIP6=x\nRIP6=x",  # of the other family
        "failover() { true; }",
        "overfail",
        "# failover=yes",
    ],
)
def test_what_is_not_meant_for_us_is_passed_over(path: Path, lines: str) -> None:
    assert read(path, f"{GOOD}{lines}\n") == read(path, GOOD)


def test_failover_looks_for_machines_where_it_is_known_where(path: Path) -> None:
    text = f"{GOOD}failover\nport_alive=80\ncheck_cycle=3\n"
    assert read(path, text).services[0].discovery is None
    text += "private_NIC=eth1\nRIP4=10.0.0.0/24\nbroadcast=10.0.0.255\n"
    config = read(path, text)
    assert config.services[0].discovery == Discovery(interval_s=3)
    assert parse_toml(to_toml(config), "f").config() == config
    without = read(path, text.replace("server4=10.0.0.1 weight=3\nserver4=10.0.0.2\n", ""))
    assert without.services[0].backends == ()
    assert len(mistakes(path, text.replace("cycle=3", "cycle=x"))) == 1


def test_a_wrong_broadcast_is_wrong_in_the_other_family_too(path: Path) -> None:
    text = "VIP6=2001:db8::10\nserver6=fd00::1\nbroadcast=x\n"
    assert mistakes(path, text, 6) == ["f:3: broadcast: found 'x', expected an IPv4 address"]


def test_what_is_missing(path: Path) -> None:
    assert mistakes(path, "") == [
        "f: VIP4: missing, expected a value",
        "f: server4: found none, expected at least one",
    ]
    assert mistakes(path, GOOD, 6)[0] == "f: VIP6: missing, expected a value"


def test_all_mistakes_come_at_once(path: Path) -> None:
    text = f"{GOOD}FIRST_CORE=3\nLAST_CORE=2\nport_alive=0\nfailover\n"
    text += "server4=10.0.0.1\nserver4=x y\nnfq_len=$N\n"
    places = [each.split(": ")[:2] for each in mistakes(path, text)]
    assert places == [
        ["f:6", "LAST_CORE"],
        ["f:7", "port_alive"],
        ["f:9", "server4"],
        ["f:10", "server4"],
        ["f:10", "server4"],
        ["f:11", "nfq_len"],
    ]


def test_one_file_with_both_families(path: Path) -> None:
    both = (
        GOOD
        + "VIP6=2001:db8::10\nserver6=fd00::1\nprivate_GW=10.0.0.254\nprivate_GW=fd00::fe\nRIP4=24\nRIP6=64\n"
    )
    ipv4 = read(path, both)
    assert [each.name for each in ipv4.services] == ["ipv4"]
    assert [str(each) for each in ipv4.network.private_addresses] == ["10.0.0.254/24"]
    config = Source(path=path, families=(4, 6)).load()
    assert [each.name for each in config.services] == ["ipv4", "ipv6"]
    assert [str(each) for each in config.network.private_addresses] == ["10.0.0.254/24", "fd00::fe/64"]
    assert [str(each) for each in config.network.backend_networks] == ["10.0.0.0/24", "fd00::/64"]


def test_places_in_two_files_that_are_read_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    Path("loaded.config").write_text(GOOD + "NS=192.0.2.53\n")
    Path("loaded.config6").write_text("VIP6=2001:db8::10\nserver6=fd00::1\nserver6=fd00::300g\nNS=x\n")
    with pytest.raises(ConfigError) as raised:
        Source(families=(4, 6)).load()
    places = [(each.place, each.key) for each in raised.value.mistakes]
    assert places == [("loaded.config6:3", "server6"), ("loaded.config6:4", "NS")]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_classic(path, 4)


@pytest.mark.parametrize(
    ("rules", "listen"),
    [
        ("iptables -t nat -A PREROUTING -p tcp -d 192.0.2.10 -j QUEUE", ["tcp"]),
        ("iptables -t raw -A PREROUTING -d $VIP4 -p tcp --dport 80 -j QUEUE", ["tcp/80"]),
        (
            '  sudo /sbin/iptables-nft -I PREROUTING 1 -d "${VIP4}/32" -p udp --dport=53 -j QUEUE # DNS',
            ["udp/53"],
        ),
        ("iptables -w 5 -A PREROUTING -p icmp -i eth0 --jump=NFQUEUE --queue-num 3 --queue-bypass", ["icmp"]),
        ("iptables -A PREROUTING -d 192.0.2.0/24 -p 6 -m tcp --dport 8000:8010 -j QUEUE", ["tcp/8000-8010"]),
        (
            "iptables -A PREROUTING -d $VIP4 -p tcp -m multiport \\\n  --dports 80,443,1:9 -j QUEUE",
            ["tcp/80", "tcp/443", "tcp/1-9"],
        ),
        (
            "iptables -A PREROUTING -d $VIP4 -p tcp --dport 80 -j QUEUE\n"
            "iptables -D PREROUTING -d $VIP4 -p tcp --dport 81 -j QUEUE\n"
            "ip6tables -A PREROUTING -d $VIP6 -p tcp --dport 82 -j QUEUE\n"
            "iptables -A POSTROUTING -s 10.0.0.0/24 -o eth0 -p tcp --sport 80 -j QUEUE\n"
            "iptables -A FORWARD -s 10.0.0.0/24 -m state --state NEW -j QUEUE\n"
            "# iptables -A PREROUTING -d $VIP4 -p tcp --dport 83 -j QUEUE\n"
            "iptables -A INPUT -p tcp --dport 22 -j ACCEPT\n"
            "iptables -A PREROUTING -d $VIP4 -p tcp --dport 80 -j QUEUE\n"
            "iptables -A PREROUTING -d $VIP4 -p icmp -j QUEUE",
            ["tcp/80", "icmp"],
        ),
        (
            "iptables -A PREROUTING -d $VIP4 -p tcp --dport 80 -j QUEUE\n"
            "iptables -A PREROUTING -d $VIP4 -j QUEUE",
            [],
        ),
    ],
)
def test_queue_rules_say_what_is_answered(path: Path, rules: str, listen: list[str]) -> None:
    config = read(path, f"{GOOD}public_NIC=eth0\n{rules}\n")
    assert [str(each) for each in config.services[0].listen] == listen
    assert parse_toml(to_toml(config), "f").config() == config


def test_queue_rules_of_ipv6(path: Path) -> None:
    text = "VIP6=2001:db8::10\nserver6=fd00::1\nip6tables -A PREROUTING -d $VIP6 -p ipv6-icmp -j QUEUE\n"
    assert [str(each) for each in read(path, text, 6).services[0].listen] == ["icmp"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-A PREROUTING -s 198.51.100.0/24 -j QUEUE", "found '-s', expected no more than -d, -p and --dport"),
        ("-A PREROUTING -d $VIP4 -m state --state NEW -j QUEUE", "found '-m state', expected no more than"),
        ("-A PREROUTING -d $VIP4 -p tcp ! --dport 22 -j QUEUE", "found '!', expected no more than"),
        ("-A PREROUTING ! -d $VIP4 -j QUEUE", "found '!', expected no more than"),
        ("-A PREROUTING -d 192.0.2.11 -j QUEUE", "found '192.0.2.11', expected VIP4"),
        ("-A PREROUTING -i eth7 -j QUEUE", "found 'eth7', expected public_NIC"),
        ("-A PREROUTING -p sctp -j QUEUE", "found '-p sctp', expected tcp or udp, or without a port icmp"),
        ("-A PREROUTING -p icmp --dport 1 -j QUEUE", "found '-p icmp', expected tcp or udp, or without"),
        ("-A PREROUTING -p tcp --dport $PORT -j QUEUE", "found '$PORT', expected a plain value"),
        ("-A PREROUTING -p tcp --dport http -j QUEUE", "found 'tcp/http', expected a port or a range"),
        ("-A PREROUTING -p tcp --dport -j QUEUE", "found 'QUEUE', expected no more than"),
        ("-A balanced -p tcp -j QUEUE", "found the chain 'balanced', expected PREROUTING"),
        ("-A PREROUTING -p tcp -jQUEUE", "found '-jQUEUE', expected no more than"),
        ("-A PREROUTING -j QUEUE || exit 1", "found '||', expected no more than"),
        ("-A PREROUTING -j QUEUE 'x", "found open quotes, expected closed ones"),
    ],
)
def test_a_queue_rule_that_is_not_understood_is_never_passed_over(
    path: Path, rule: str, expected: str
) -> None:
    (found,) = mistakes(path, f"{GOOD}public_NIC=eth0\niptables {rule}\n")
    assert found.startswith(f"f:6: QUEUE: {expected}")


@pytest.mark.parametrize(
    "words", ["$IPT", "for port in 80 443; do iptables", "[ -x /sbin/iptables ] && iptables"]
)
def test_a_queue_rule_in_a_shell_s_words_is_never_passed_over(path: Path, words: str) -> None:
    (found,) = mistakes(path, f"{GOOD}{words} -A PREROUTING -p tcp --dport 80 -j QUEUE\n")
    assert found.startswith("f:5: QUEUE: found ")


_LINES = st.sampled_from(
    [*(DEPLOY / "loaded.config").read_text().splitlines(), *GOOD.splitlines(), "VIP4=1.2.3.4/8"]
)
_NAMES = st.sampled_from(
    [
        "iptables -j QUEUE -A PREROUTING ",
        "VIP4",
        "VIP4net",
        "RIP4",
        "server4",
        "NS",
        "private_GW",
        "FIRST_CORE",
        "LAST_CORE",
        "nfq_len",
    ]
)
_ASSIGNMENTS = st.tuples(_NAMES, st.text(st.characters(codec="utf-8"), max_size=12)).map("=".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.lists(_LINES | _ASSIGNMENTS).map(lambda lines: "\n".join(lines).encode()))
def test_no_bytes_raise_anything_else(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found: tuple[Mistake, ...] = ()
    try:
        config = read_classic(path, 4, failover=True).config()
        assert parse_toml(to_toml(config), "f").config() == config
    except ConfigError as error:
        found = error.mistakes
    assert all("\n" not in str(each) for each in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 250), st.integers(0, 99)),
        min_size=1,
        max_size=9,
        unique_by=lambda each: each[0],
    ).filter(lambda servers: any(weight for _, weight in servers)),
    st.lists(_LINES.filter(lambda line: not line.startswith(("VIP4=", "server4=", "failover")))),
)
def test_what_is_converted_reads_the_same(
    path: Path, servers: list[tuple[int, int]], lines: list[str]
) -> None:
    text = "VIP4=192.0.2.10\n" + "".join(
        f"server4=10.0.0.{host} weight={weight}\n" for host, weight in servers
    )
    path.write_text(text + "\n".join(["FIRST_CORE=0", *lines]))
    config = read_classic(path, 4).config()
    assert [(str(each.address), each.weight) for each in config.services[0].backends] == [
        (f"10.0.0.{host}", weight) for host, weight in servers
    ]
    assert parse_toml(to_toml(config), "f").config() == config
