"""Slow work beside the event loop."""

import asyncio
import threading
import time

import pytest

from loaded_mp.network.errors import NetworkError
from loaded_mp.network.patience import patience
from loaded_mp.supervisor.aside import aside


def test_the_loop_goes_on_and_no_thread_is_left() -> None:
    async def run() -> int:
        released = threading.Event()
        asyncio.get_running_loop().call_later(0.01, released.set)
        return await aside(lambda: 7 if released.wait(5) else 0)

    threads = threading.active_count()
    assert asyncio.run(run()) == 7
    assert threading.active_count() == threads


def test_what_is_cancelled_loses_its_patience_and_is_waited_for() -> None:
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        while patience.get().left_s():
            time.sleep(0.001)
        ended.set()
        raise NetworkError("given up")

    async def run() -> None:
        task = asyncio.create_task(aside(work))
        while not began.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(run())


def test_patience_ends() -> None:
    def work() -> float:
        time.sleep(0.02)
        return patience.get().left_s()

    assert asyncio.run(aside(work, 0.01)) == 0.0


def test_no_thread_is_no_end_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(NetworkError, match="can't start new thread"):
            await aside(lambda: None)

    asyncio.run(run())
