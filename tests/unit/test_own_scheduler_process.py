"""A scheduler of the operator's own: what it may do, and what becomes of it when it does something else."""

import asyncio
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import service
from test_explain import Daemon
from world import VIP, VIPS

from loaded_mp.config.bounded import load_bounded
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config, Service
from loaded_mp.config.source import Source
from loaded_mp.own_scheduler import asking
from loaded_mp.own_scheduler.asking import Answer, BackendSeen, CheckSeen, SchedulerError, ask
from loaded_mp.status import Wanted
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.rates import Rates

ROOT = Path(__file__).parents[2]
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def seen(weights: tuple[int, ...] = (1, 2, 3), flows: tuple[int, ...] = (0, 0, 0)) -> list[BackendSeen]:
    check = CheckSeen("TCP port 80", True, "accepted", 0.01)
    return [
        BackendSeen(
            f"web{n}", address, weight, weight, False, weight > 0, flows[n], {"new_flows": 1.5}, (check,)
        )
        for n, (address, weight) in enumerate(zip(BACKENDS, weights, strict=True))
    ]


def answer_of(path: Path, backends: list[BackendSeen] | None = None, most: int = 1_000) -> Answer:
    return asyncio.run(ask(str(path), "nobody", backends or seen(), most))


def shares(answer: Answer, weights: tuple[int, ...] = (1, 2, 3), most: int = 65_537) -> dict[int, int]:
    return Counter(answer.filled(weights, most).tolist())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        ("return backends", [0, 1, 2]),
        ("return ['web2', '10.0.0.1', backends[1], 'web2']", [2, 0, 1, 2]),
        ("return tuple(b for b in backends if b.flows < 5)", [0, 2]),
        ("return [b for b in backends if b.rates['new_flows'] == 1.5 and b.checks[0].took_s < 1][:1]", [0]),
        ("print('x' * 10_000_000); return backends[:1]", [0]),
        ("import random, statistics; return backends[:1]", [0]),
        ("return [b for b in backends if b.weight > 1 and b.up and not b.backup]", [1, 2]),
    ],
)
def test_a_list_is_the_slots_in_turn(file: Path, body: str, slots: list[int]) -> None:
    file.write_text(f"def slots(backends):\n    {body}\n")
    answer = answer_of(file, seen(flows=(0, 9, 0)))
    assert answer.filled([1, 2, 3], 1_000).tolist() == slots


def test_a_dict_is_shares(file: Path) -> None:
    file.write_text("def slots(backends):\n    return {'web0': 3, backends[2]: 1.0, backends[1]: 0}\n")
    assert answer_of(file).filled([1, 2, 3], 1_000).tolist() == [0, 0, 2, 0]
    file.write_text("def slots(backends):\n    return {b: 0.1 + n for n, b in enumerate(backends)}\n")
    found = shares(answer_of(file))
    total = sum(found.values())
    assert total <= 5_000
    assert [round(found[n] / total, 2) for n in range(3)] == [0.03, 0.33, 0.64]
    assert shares(Answer(shares=[1 << 40, 1, 1 << 40]))[1] >= 1


def test_who_has_no_weight_gets_nothing() -> None:
    assert Answer(slots=[0, 1, 2, 1]).filled([1, 0, 1], 10).tolist() == [0, 2]
    assert set(shares(Answer(shares=[1, 5, 1]), (1, 0, 1))) == {0, 2}
    assert set(shares(Answer(shares=[0.5, 5, 1]), (1, 0, 1))) == {0, 2}


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("def slots(backends):\n    return backend\n", 2, "NameError: name 'backend' is not defined"),
        ("x = 1\ndef slots(backends:\n", 2, "SyntaxError: '\\(' was never closed"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("def slots(backends):\n    return f()\ndef f():\n    return 1 / 0\n", 4, "ZeroDivisionError"),
        ("x = 1\n", 0, r"found no function slots\(backends\) in it"),
        ("def slots(backends):\n    pass\n", 0, "gave None, expected a list of backends, or a dict"),
        ("def slots(backends):\n    return ['web9']\n", 0, "gave 'web9', which is not one of the backends"),
        ("def slots(backends):\n    return {'web1': -1}\n", 0, "gave -1 as a share, expected a number"),
        ("def slots(backends):\n    return {'web1': 'x'}\n", 0, "gave 'x' as a share"),
        ("def slots(backends):\n    return {'web1': float('nan')}\n", 0, "gave nan as a share"),
        ("def slots(backends):\n    return []\n", 0, "gave no backend that may have new flows"),
        ("def slots(backends):\n    return {'web1': 0}\n", 0, "gave no backend that may have new flows"),
        ("def slots(backends):\n    return backends * 400\n", 0, "1,200 slots, expected 1,000 at the most"),
        ("import os\nos._exit(7)\n", 0, "ended with status 7, and gave no slots"),
        ("import os\nos.kill(os.getpid(), 11)\n", 0, "ended with status -11, and gave no slots"),
        ("import os\nfor n in range(3, 9):\n  try: os.write(n, b'rubbish')\n  except OSError: pass\n"
         "def slots(backends):\n    return backends\n", 0, "gave no slots"),
        ("import os\nwhile 1:\n  for n in range(3, 9):\n    try: os.write(n, b'x' * 9999)\n"
         "    except OSError: pass\n", 0, "said too much"),
        ("x = bytearray(1 << 30)\n", 1, "MemoryError"),
        ("def slots(backends):\n    return slots(backends)\n", 2, "RecursionError"),
        ("import os\nos.fork()\n", 2, "BlockingIOError|Resource temporarily"),
        ("with open('/tmp/of-a-scheduler', 'w') as f: f.write('x')\n", 1, "OSError: .* File too large"),
        ("open('/etc/shadow')\n", 1, "PermissionError"),
    ],
)  # fmt: skip
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_goes_wrong_is_said_with_the_line(file: Path, text: str, line: int, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(SchedulerError, match=fault) as caught:
        answer_of(file)
    assert caught.value.place == (f"{file}:{line}" if line else str(file))
    Path("/tmp/of-a-scheduler").unlink(missing_ok=True)


def test_one_that_hangs_is_killed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.3)
    file.write_text("import time, signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(9)\n")
    with pytest.raises(SchedulerError, match=r"gave no slots within 0\.3 s, and was killed"):
        answer_of(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_that_others_may_write_is_not_run(file: Path) -> None:
    file.write_text("def slots(backends):\n    return backends\n")
    assert answer_of(file).slots == [0, 1, 2]  # though nobody but root may read it
    for mode in (0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(SchedulerError, match="others than its owner may write it: chmod go-w "):
            answer_of(file)
    file.chmod(0o600)
    os.chown(file, 1, 1)
    with pytest.raises(SchedulerError, match="belongs to user 1, expected root: chown root "):
        answer_of(file)
    file.unlink()
    with pytest.raises(SchedulerError, match="No such file"):
        answer_of(file)
    os.mkfifo(file, 0o600)
    assert stat.S_ISFIFO(file.stat().st_mode)
    with pytest.raises(SchedulerError, match="something else than a regular file"):
        answer_of(file)


@pytest.mark.parametrize("name", ["night.py", "room.py"])
def test_the_examples_give_slots(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text((ROOT / "deploy" / name).read_text())
    path.chmod(0o644)
    found = shares(answer_of(path, seen(flows=(500, 0, 3_000))))
    if name == "room.py":
        assert found[1] / found[0] == pytest.approx(4, rel=0.01)
        assert found[2] <= found[0] / 100
    else:
        half = time.localtime().tm_hour in (22, 23, 0, 1, 2, 3, 4, 5)
        assert found == ({0: 1, 1: 2} if half else {0: 1, 1: 2, 2: 3})


def test_the_page_shows_the_example() -> None:
    code = (ROOT / "deploy/night.py").read_text().partition("\n\n")[2]
    assert f"```python\n{code}```" in (ROOT / "docs/schedulers.md").read_text()


def configured(path: Path, file: Path) -> Source:
    path.write_text(
        f'[[service]]\nname = "web"\nvips = ["192.0.2.10", "2001:db8::10"]\nscheduler = "{file}"\n'
        + "".join(f'[[service.backend]]\naddress = "{each}"\n' for each in (*BACKENDS, "fd00::1", "fd00::2"))
    )
    return Source(path)


def test_a_configuration_with_a_broken_file_is_a_mistake(file: Path, tmp_path: Path) -> None:
    source = configured(tmp_path / "f.toml", file)
    with pytest.raises(ConfigError, match=rf"{file}: scheduler of web: found no function slots"):
        source.load()
    file.write_text("def slots(backends):\n    return {backends[0]: 1}\n")
    assert source.load().services[0].scheduler == str(file)
    file.write_text("def slots(backends):\n    return {backends[2]: 1}\n")  # there are two of IPv6
    with pytest.raises(ConfigError, match=rf"{file}:2: scheduler of web: IndexError"):
        asyncio.run(load_bounded(source.load))
    file.write_text("def slots(backends):\n    return backends\n")
    assert asyncio.run(load_bounded(source.load)) == source.load()


def test_a_scheduler_is_a_name_or_a_whole_path() -> None:
    for name in ("night.py", "/etc/night", "best"):
        with pytest.raises(ValueError, match="or the whole path of a Python file"):
            Service.model_validate({"name": "x", "vips": ["192.0.2.1"], "backends": [], "scheduler": name})


class World(Daemon):
    """Backends whose service asks a file."""

    def __init__(self, file: Path, **more: Any) -> None:
        backends = dict.fromkeys([*BACKENDS, "fd00::1"], 1)
        super().__init__(service("web", VIPS, backends, scheduler=str(file), **more))
        self.told = asyncio.Event()
        rates = Rates(self.memory, Accounting())
        self.own = OwnSchedulers(self.memory, self.supervised, rates, self.told.set)

    def picked(self, flows: int = 12) -> Counter[str]:
        """Who gets new flows."""
        self.show()
        host = iter(range(1, 250))
        net = int(time.monotonic_ns() % 200)
        return Counter(str(self.happens(f"198.{net}.{next(host)}.1", VIP[4])) for _ in range(flows))

    def table_of(self) -> list[str]:
        """The last byte of the addresses in the IPv4 slots."""
        part = next(each for each in self.supervised.services.parts if each.family == 4)
        slots = self.supervised.tables.get(part.id, np.empty(0, np.uint16)).tolist()
        return [str(part.backends[number].address)[-1] for number in slots]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def rewrite(file: Path, text: str) -> None:
    """At once, as it may be read at any moment."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_what_a_file_gives_workers_follow(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    good = "def slots(backends):\n    return [b for b in backends if b.weight and b.name != '10.0.0.2']\n"
    file.write_text(good)
    world = World(file, scheduler_interval_s=0.3)
    assert set(world.picked()) == set(BACKENDS)  # by weight, as nothing was given so far

    async def run() -> None:
        asking = asyncio.create_task(world.own.run())
        await until(lambda: world.table_of() == ["1", "3"])
        assert world.picked() == {"10.0.0.1": 6, "10.0.0.3": 6}
        world.state("10.0.0.1").wanted = Wanted.DRAIN
        world.show()
        assert set(world.picked()) == {"10.0.0.3"}  # before it is asked again
        await until(lambda: world.table_of() == ["3"])
        # If nobody of those that it gave is left, new flows are spread by weight.
        world.state("10.0.0.3").wanted = Wanted.MAINTENANCE
        assert set(world.picked()) == {"10.0.0.2"}
        faults = world.supervised.scheduler_faults
        await until(
            lambda: any("gave no backend that may have new flows" in each for each in faults.values())
        )
        world.state("10.0.0.3").wanted = Wanted.READY
        world.show()
        await until(lambda: not any(faults.values()))
        rewrite(file, "def slots(backends):\n    return 1 / 0\n")
        await until(lambda: any("2: ZeroDivisionError" in each for each in faults.values()))
        await asyncio.sleep(0.7)  # it is asked twice more
        assert world.table_of() == ["3"]
        rewrite(file, good)
        await until(lambda: not any(faults.values()))
        asking.cancel()
        await asyncio.wait([asking])

    asyncio.run(run())
    said = [each.getMessage() for each in caplog.records if "event=scheduler-" in each.getMessage()]
    assert [each.split()[0] for each in said] == ["event=scheduler-failed", "event=scheduler-works"] * 2
    assert f'cause="{file}:2: ZeroDivisionError: division by zero"' in said[2]
    assert "the slots that it gave before stay" in said[2]


def test_a_table_goes_on_under_another_supervisor(file: Path) -> None:
    file.write_text("def slots(backends):\n    return backends[-1:]\n")
    world = World(file)
    asyncio.run(world.own.first())
    assert world.table_of() == ["3"]
    assert set(world.picked()) == {"10.0.0.3"}
    world.supervised.configure(
        world.supervised.expand(
            Config(services=(service("web", VIPS, dict.fromkeys([*BACKENDS, "fd00::1"], 1)),)),
            world.supervised.services,
        )
    )
    assert world.supervised.tables == {}
    assert set(world.picked()) == set(BACKENDS)
