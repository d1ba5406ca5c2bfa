"""What is said to systemd and asked of it, by stand-ins."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loaded_mp.supervisor import systemd

UNIT = "loaded-mp.service"
JOBS = "  7 loaded-mp.service restart running\n 12 other.service stop waiting\n"


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """The next thing that systemd is told."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield lambda: listening.recv(1000).decode()


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """This process is the unit's; the function says what systemctl does, as a script."""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    monkeypatch.setattr(systemd, "unit_of", lambda groups: UNIT)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(script: str) -> None:
        path = tmp_path / "systemctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return answer


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.tell("READY=1")


def test_it_is_told(heard: Callable[[], str]) -> None:
    systemd.tell("READY=1")
    assert heard() == "READY=1"
    systemd.tell_stopping(5.0)
    assert heard() == "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000"


def test_a_systemd_that_is_away_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    systemd.tell("WATCHDOG=1")
    assert "event=systemd-not-told" in caplog.text


def test_the_watchdog_is_fed_twice_in_its_time(
    heard: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    async def feed() -> None:
        task = asyncio.create_task(systemd.feed_watchdog())
        assert await asyncio.to_thread(heard) == "WATCHDOG_USEC=100000"
        for _ in range(3):
            assert await asyncio.to_thread(heard) == "WATCHDOG=1"
        task.cancel()

    systemd.tell_beginning_anew()
    assert heard() == "WATCHDOG_USEC=90000000"
    asyncio.run(feed())


@pytest.mark.parametrize(("period", "pid"), [("", "0"), ("x", "0"), ("100000", "1")])
def test_without_a_watchdog_of_ours_nothing_is_fed(
    period: str, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    asyncio.run(asyncio.wait_for(systemd.feed_watchdog(), 10))


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (JOBS, True),
        ("7 loaded-mp.service stop running", False),
        ("7 other.service restart running", False),
        ("No jobs running.", False),
        ("", False),
    ],
)
def test_a_restart_is_known_by_its_job(jobs: str, expected: bool, answer: Callable[[str], None]) -> None:
    answer(f"printf '{jobs}'")
    assert asyncio.run(systemd.is_restarting()) is expected


@pytest.mark.parametrize("script", ["exec sleep 60", "exit 1", "kill -9 $$"])
def test_in_doubt_it_is_a_stop_for_good(
    script: str,
    answer: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer(script)
    monkeypatch.setattr(systemd, "_ANSWER_S", 0.2)
    started_s = time.monotonic()
    assert asyncio.run(systemd.is_restarting()) is False
    assert time.monotonic() - started_s < 10
    assert "event=restart-unknown" in caplog.text


def test_who_was_not_started_by_systemd_does_not_ask(
    answer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(f"echo '{JOBS}'")
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")
    assert asyncio.run(systemd.is_restarting()) is False


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("0::/system.slice/loaded-mp.service\n", UNIT),
        ("9:name=systemd:/system.slice/loaded-mp.service\n8:pids:/\n0::/\n", UNIT),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
    ],
)
def test_the_unit_is_that_of_the_control_group(groups: str, expected: str) -> None:
    assert systemd.unit_of(groups) == expected
