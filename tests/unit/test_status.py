"""What the status is made of, and how it looks on a screen."""

import subprocess
import sys
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_metrics import BACKEND, STATUS

from loaded_mp.cli import status as screen
from loaded_mp.cli.ipvsadm import ipvsadm
from loaded_mp.cli.table import duration, narrowed, services_text
from loaded_mp.memory.counters import OF_REQUESTS, FlowTableCounter
from loaded_mp.status import BackendStatus, Status

ADDRESSES = ("10.0.0.1", "2001:db8:10::10", "2001:db8:1111:2222:3333:4444:5555:6666")
QUIET = STATUS.model_copy(
    update={
        "reasons": {},
        "workers": tuple(
            each.model_copy(update={"counters": each.counters | {"unsent_verdicts": 0}})
            for each in STATUS.workers
        ),
    }
)


def shown(status: Status, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width, highlight=False, emoji=False)
    screen.show(console, status)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def with_backends(*backends: BackendStatus) -> Status:
    (service,) = QUIET.services
    return QUIET.model_copy(update={"services": (service.model_copy(update={"backends": backends}),)})


def test_json_is_read_back_as_it_was() -> None:
    assert Status.model_validate_json(STATUS.model_dump_json(indent=2)) == STATUS


def test_what_a_status_is_made_of_needs_nothing_that_is_slow() -> None:
    program = "import sys, loaded_mp.status, loaded_mp.memory.counters as c; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_prints_addresses_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = with_backends(BACKEND.model_copy(update={"address": "2001:db8:a:1::b:ab:1"}))
    monkeypatch.setattr(screen, "answer_to", lambda *_, **__: now)
    assert "web1 2001:db8:a:1::b:ab:1" in CliRunner().invoke(screen.command, []).stdout
    assert CliRunner().invoke(screen.command, ["--json"]).stdout == now.model_dump_json(indent=2) + "\n"


def test_a_backend_has_a_line_of_totals_and_one_of_what_there_is_in_a_second() -> None:
    counters = BACKEND.counters | {"new_flows": 1_234_567, "to_client_bytes": 5_600_000_000}
    rates = BACKEND.rates | {"new_flows": 0.5, "to_backend_packets": 123_456.0}
    now = with_backends(BACKEND.model_copy(update={"flows": 9_876, "counters": counters, "rates": rates}))
    lines = shown(now, 80).splitlines()
    assert lines[:7] == [
        "                                     flows         to backend          to client",
        "backend                       open     new  packets     bytes  packets     bytes",
        "service web: wrr, rewrite, affinity source",
        "  VIP 192.0.2.10: tcp/80",
        "  checked by TCP port 80",
        "web1 10.0.0.1                9,876   1.23M    1,000      1 KB    1,002    5.6 GB",
        "  up 5 s, weight 3/3                 0.5/s   123k/s  13.5 B/s     14/s  15.5 B/s",
    ]
    text = shown(now)
    assert f"{STATUS.flow_table.counters[FlowTableCounter.EVICTIONS.name.lower()]:,} evicted" in text
    assert "not balanced: nothing" in text
    assert "must be zero" not in text
    assert "down" not in text


def totals(now: Status) -> list[str]:
    """What ipvsadm prints with --stats."""
    lines = list(ipvsadm(now))
    return lines[lines.index(lines[0], 1) :]


def test_replies_that_do_not_pass_are_no_zero() -> None:
    counters, rates = ({each.name.lower(): 5 for each in OF_REQUESTS} for _ in range(2))
    now = with_backends(BACKEND.model_copy(update={"counters": counters, "rates": rates}))
    assert shown(now, 80).splitlines()[5:7] == [
        "web1 10.0.0.1                    7       5        5       5 B        -         -",
        "  up 5 s, weight 3/3                   5/s      5/s     5 B/s",
    ]
    assert totals(now)[4].split()[-5:] == ["5", "5", "0", "5", "0"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_80_columns_hold_every_address(address: str) -> None:
    figures = BACKEND.counters | {"new_flows": 999_999, "to_backend_bytes": 10**12, "to_client_bytes": 10**9}
    rates = dict.fromkeys(BACKEND.rates, 999_999.0)
    busy = BACKEND.model_copy(
        update={"name": "a" * 20, "address": address, "flows": 99_999, "counters": figures, "rates": rates}
    )
    text = shown(with_backends(busy, busy), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for figure in ("99,999", "1 TB", "1 GB", "weight 3/3", "1M/s", "1 MB/s"):
        assert text.count(figure) >= 2
    assert text.count(f"{'a' * 20} {address}") == 2


def test_of_thousands_of_backends_some_are_shown() -> None:
    idle = BACKEND.model_copy(update={"name": "web2", "address": "10.0.0.22", "effective_weight": 0})
    now = with_backends(BACKEND, idle)

    def names(text: str = "", without_new: bool = False) -> list[str]:
        return [
            each.name for service in narrowed(now, text, without_new).services for each in service.backends
        ]

    assert names() == ["web1", "web2"]
    assert names("WEB2") == names("0.22") == names(without_new=True) == ["web2"]
    assert names("web1", without_new=True) == []


def test_a_backup_is_said_to_be_one() -> None:
    waiting = BACKEND.model_copy(update={"backup": True, "effective_weight": 0})
    assert ", backup, weight 0/3" in shown(with_backends(BACKEND, waiting), 80)
    assert shown(with_backends(BACKEND, waiting), 80).count("backup,") == 1


def test_as_ipvsadm() -> None:
    (service,) = with_backends(BACKEND).services
    six = BACKEND.model_copy(
        update={
            "name": "web6",
            "address": "fd00::1",
            "counters": BACKEND.counters | {"new_flows": 123_456_789},
        }
    )
    both = {"vips": ("192.0.2.10", "2001:db8::10"), "listen": ("tcp/80", "icmp"), "backends": (BACKEND, six)}
    now = QUIET.model_copy(update={"services": (service.model_copy(update=both),)})
    assert list(ipvsadm(now))[:8] == [
        "IP Virtual Server version 1.2.3 (size=1000)",
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
        "TCP  192.0.2.10:80 wrr persistent",
        "  -> 10.0.0.1:80                  Masq    3      7          0",
        "ICMP 192.0.2.10:0 wrr persistent",
        "  -> 10.0.0.1:0                   Masq    3      7          0",
        "TCP  [2001:db8::10]:80 wrr persistent",
    ]
    assert totals(now)[:11] == [
        "IP Virtual Server version 1.2.3 (size=1000)",
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
        "TCP  192.0.2.10:80                    1004     1000     1002     1001     1003",
        "  -> 10.0.0.1:80                      1004     1000     1002     1001     1003",
        "ICMP 192.0.2.10:0                     1004     1000     1002     1001     1003",
        "  -> 10.0.0.1:0                       1004     1000     1002     1001     1003",
        "TCP  [2001:db8::10]:80             123456K     1000     1002     1001     1003",
        "  -> [fd00::1]:80                  123456K     1000     1002     1001     1003",
        "ICMP [2001:db8::10]:0              123456K     1000     1002     1001     1003",
        "  -> [fd00::1]:0                   123456K     1000     1002     1001     1003",
    ]
    assert "  -> 10.0.0.1:80                        16       12       14       14       16" in list(
        ipvsadm(now)
    )


def test_ports_of_backends_as_ipvsadm_has_them() -> None:
    (service,) = with_backends(BACKEND).services
    backends = tuple(
        BACKEND.model_copy(update={"address": each})
        for each in ("10.0.0.1:8000", "10.0.0.1", "[fd00::1]:8000")
    )
    more = {"vips": ("192.0.2.10", "2001:db8::10"), "listen": ("tcp/80-82", "icmp"), "backends": backends}
    now = QUIET.model_copy(update={"services": (service.model_copy(update=more),)})
    ends = [line[:33].strip() for line in totals(now) if "->" in line or "2001" in line]
    assert ends[1:8] == [
        "-> 10.0.0.1:8000-8002",
        "-> 10.0.0.1:80-82",
        "-> 10.0.0.1:0",
        "-> 10.0.0.1:0",
        "TCP  [2001:db8::10]:80-82",
        "-> [fd00::1]:8000-8002",
        "ICMP [2001:db8::10]:0",
    ]


def test_a_backend_that_is_down_says_why_and_for_how_long() -> None:
    cause = "connect to [fd00::1]:80: refused"
    down = BACKEND.model_copy(update={"up": False, "since_s": 185.2, "cause": cause})
    text = shown(with_backends(BACKEND, down))
    assert f"down: web web1 10.0.0.1 for 3 min 5 s: {cause}\n" in text
    assert "  down 3 min 5 s, weight 3/3" in text


def test_a_scheduler_that_fails_is_shown() -> None:
    fault = "/etc/mine.py:2: NameError: name 'x' is not defined"
    service = STATUS.services[0].model_copy(update={"scheduler": "/etc/mine.py", "scheduler_fault": fault})
    assert f"  scheduler fails: {fault}\n" in services_text([service]).plain
    assert "scheduler fails" not in services_text(STATUS.services).plain


def test_drops_are_shown_by_queue_and_cause() -> None:
    lines = shown(QUIET, 80).splitlines()
    assert "dropped in queue 10: queue full 3, socket full 4, over their client's share 6" in lines
    (worker,) = QUIET.workers
    none = worker.model_copy(update={"queue_drops": 0, "socket_drops": 0, "over_share": 0})
    assert "dropped in" not in shown(QUIET.model_copy(update={"workers": (none,)}))
    share = worker.model_copy(update={"queue_drops": 0, "socket_drops": 0})
    lines = shown(QUIET.model_copy(update={"workers": (share,)}), 80).splitlines()
    assert "dropped in queue 10: over their client's share 6" in lines


def test_the_table_of_connections_is_shown_if_there_is_one() -> None:
    assert "conntrack: 50 of 1,000 connections, 5 % full" in shown(QUIET).splitlines()
    assert "conntrack" not in shown(QUIET.model_copy(update={"tracked": None}))


@pytest.mark.parametrize("wanted", ["drain", "maintenance"])
def test_what_the_operator_wants_is_shown(wanted: str) -> None:
    assert wanted in shown(with_backends(BACKEND.model_copy(update={"wanted": wanted})), 80)


def test_what_must_be_zero_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_must_be_zero", lambda reason: reason == "cut")
    lines = shown(QUIET.model_copy(update={"reasons": {"no_flow": 3, "cut": 2, "link": 0}})).splitlines()
    assert "not balanced: no_flow 3" in lines
    assert "must be zero: cut 2" in lines
    unsent = sum(each.counters["unsent_verdicts"] for each in STATUS.workers)
    lines = shown(STATUS.model_copy(update={"reasons": {}})).splitlines()
    assert f"must be zero: unsent_verdicts {unsent:,}" in lines


def test_counters_that_cannot_be_read_say_their_age() -> None:
    fault = "iptables-save did not end in time: is another one stuck?"
    text = shown(QUIET.model_copy(update={"counters_age_s": 75.2, "counters_fault": fault}))
    assert f"what the kernel's rules count was last read 1 min 15 s ago: {fault}\n" in text
    assert "last read" not in shown(QUIET)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
