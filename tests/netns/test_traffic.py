"""The main job on real traffic: who is served by whom, and whether every byte arrives."""

import concurrent.futures
import itertools
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIPS, Lab, in_url

WEIGHTS = (3, 2, 1)
SOURCES = 300
EXPECTED = {"backend1": 150, "backend2": 100, "backend3": 50}
BIG_MIB = 100

#: Sends datagrams from one socket, several under way, and prints what did not come back: of every size up to
#: three fragments, then of every seventh, so that the rest of a size by any power of two comes along.
ECHO_MANY_SIZES = """
import os, socket, sys
vip = sys.argv[1]
sizes = [*range(4500), *range(4500, 60_001, 7)]
echo = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
echo.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
echo.settimeout(5)
echo.connect((vip, 7))
noise = os.urandom(sizes[-1])
window = 4
waiting = set()
for number in range(len(sizes) + window):
    if number < len(sizes):
        echo.send(noise[:sizes[number]])
        waiting.add(sizes[number])
    if number >= window:
        try:
            back = echo.recv(65536)
        except TimeoutError:
            break
        if len(back) in waiting and back == noise[:len(back)]:
            waiting.remove(len(back))
        else:
            print("wrong", len(back))
print("lost", sorted(waiting))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config(WEIGHTS))
    yield daemon
    daemon.stop()


pytestmark = pytest.mark.usefixtures("daemon")


def pinged(lab: Lab, daemon: Daemon, vip: str, source: str) -> str:
    """The backend that answers a source's ping, by the daemon's counters."""

    def replies() -> Counter[str]:
        counts = Counter[str]()
        for backend in daemon.backends().values():
            counts[backend.name] += backend.counters["to_client_packets"]
        return counts

    before = replies()
    lab.client.run("ping", "-c", "3", "-i", "0.01", "-I", source, vip)
    after = replies()
    (answered,) = (name for name in after if after[name] - before[name] >= 3)
    return answered


@pytest.mark.parametrize("vip", VIPS)
def test_ping(lab: Lab, vip: str) -> None:
    assert "3 received" in lab.client.run("ping", "-c", "3", "-i", "0.1", vip).stdout


@pytest.mark.parametrize("vip", VIPS)
def test_sources_spread_by_weight_and_stay(lab: Lab, daemon: Daemon, vip: str) -> None:
    sources = lab.sources(vip)
    assert len(sources) == SOURCES
    answers = lab.answers("http", vip, 20, sources)
    backends = {source: set(names) for source, names in answers.items()}
    assert all(len(names) == 1 for names in backends.values())
    home = {source: names.pop() for source, names in backends.items()}
    spread = Counter(home.values())
    # The ping tests took some turns: each backend may be one round off.
    assert all(abs(spread[name] - share) <= 1 for name, share in EXPECTED.items()), spread
    assert lab.answers("dns", vip, 2, sources) == {source: [home[source]] * 2 for source in sources}
    for source in sources[::60]:
        assert pinged(lab, daemon, vip, source) == home[source]


@pytest.mark.parametrize("vip", VIPS)
def test_curl_wget_and_dig(lab: Lab, vip: str) -> None:
    name = lab.client.run("curl", "-sg", f"http://{in_url(vip)}/").stdout
    assert name.startswith("backend")
    assert lab.client.run("wget", "-qO-", f"http://{in_url(vip)}/").stdout == name
    assert lab.client.run("dig", "+short", f"@{vip}", "who", "TXT").stdout.strip() == f'"{name.strip()}"'


@pytest.fixture(scope="module")
def checksum(lab: Lab) -> str:
    return lab.big_file(BIG_MIB)


@pytest.mark.parametrize(("vip", "clients"), list(itertools.product(VIPS, (1, 2, 3, 4))))
def test_download(lab: Lab, vip: str, clients: int, checksum: str) -> None:

    def download(source: str) -> str:
        command = f"curl -sgf --interface {source} http://{in_url(vip)}/big | sha256sum"
        return lab.client.run("sh", "-c", command, timeout_s=120).stdout.split()[0]

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        sums = list(pool.map(download, lab.sources(vip)[:clients]))
    assert sums == [checksum] * clients


@pytest.mark.parametrize("vip", VIPS)
def test_udp_echo_of_many_sizes(lab: Lab, daemon: Daemon, vip: str) -> None:
    done = lab.client.run(sys.executable, "-c", ECHO_MANY_SIZES, vip, timeout_s=240)
    assert done.stdout == "lost []\n", daemon.status()


@pytest.mark.skipif(
    tuple(int(part) for part in platform.release().split(".")[:2]) < (6, 12),
    reason="Linux has slices of one's own choice from 6.12 on",
)
def test_workers_ask_for_short_slices(daemon: Daemon) -> None:
    for worker in daemon.status().workers:
        sched = Path(f"/proc/{worker.pid}/sched").read_text()
        assert re.search(r"se\.slice +: +100000$", sched, re.MULTILINE), sched


def test_nothing_was_dropped(daemon: Daemon) -> None:
    status = daemon.status()
    for worker in status.workers:
        assert (worker.queue_drops, worker.socket_drops, worker.restarts) == (0, 0, 0)
    unbalanced = {reason: count for reason, count in status.reasons.items() if count}
    assert set(unbalanced) <= {"link", "no_flow"}
