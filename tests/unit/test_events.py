"""Events: what is kept of them, where, and how journald gets them."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp import log as ours
from loaded_mp.log import Journal, event
from loaded_mp.memory.shared import EVENT_BYTES, MAX_EVENTS, SharedMemory, new_shared_memory, read_events
from loaded_mp.status import Event
from loaded_mp.supervisor.events import Events

log = logging.getLogger("loaded_mp.supervisor.of_this_test")


@pytest.fixture
def memory() -> SharedMemory:
    return new_shared_memory(1_024, 1)


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    logger = logging.getLogger("loaded_mp")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


class Kept:
    """The events of one supervisor."""

    def __init__(self) -> None:
        self.events = Events()
        logging.getLogger("loaded_mp").addHandler(self.events)

    def gone(self) -> None:
        logging.getLogger("loaded_mp").removeHandler(self.events)

    async def all(self) -> list[Event]:
        return await self.events.after(0, 0)


def test_events_outlive_their_supervisor(memory: SharedMemory) -> None:
    async def first() -> None:
        kept = Kept()
        log.info(event("starting", workers=4))
        kept.events.keep_in(memory)
        log.warning(event("backend-down", service="web", backend="web1", cause="refused"))
        log.info("no event")
        log.debug(event("debugging"))
        kept.gone()
        log.info(event("after-the-end"))

    async def second() -> list[Event]:
        kept = Kept()
        log.info(event("starting", workers=5))
        kept.events.keep_in(memory)
        log.info(event("backend-up", service="web", backend="web1", cause="accepted"))
        kept.gone()
        return await kept.all()

    asyncio.run(first())
    found = asyncio.run(second())
    assert [(each.number, each.level, each.event, each.backend) for each in found] == [
        (1, "info", "starting", ""),
        (2, "warning", "backend-down", "web1"),
        (3, "info", "starting", ""),
        (4, "info", "backend-up", "web1"),
    ]
    assert (found[0].more, found[1].service, found[1].cause) == ({"workers": "4"}, "web", "refused")


def test_the_last_thousand_are_kept_and_each_is_bounded(memory: SharedMemory) -> None:
    async def run() -> tuple[list[Event], list[Event]]:
        kept = Kept()
        kept.events.keep_in(memory)
        for number in range(MAX_EVENTS + 7):
            log.info(event("x", cause="\x01" * 3_000, number=number, backend="b" * 3_000))
        found = await kept.all()
        kept.gone()
        again = Kept()
        again.events.keep_in(memory)
        again.gone()
        return found, await again.all()

    found, again = asyncio.run(run())
    assert found == again
    assert [each.number for each in found] == list(range(8, MAX_EVENTS + 8))
    assert max(map(len, read_events(memory))) <= EVENT_BYTES
    assert found[-1].cause.startswith("\x01" * 20)


def test_one_that_was_cut_off_is_left_out(memory: SharedMemory) -> None:
    async def run() -> list[Event]:
        kept = Kept()
        kept.events.keep_in(memory)
        for name in ("a", "b", "c"):
            log.info(event(name))
        kept.gone()
        memory.events[1, 20:] = 0
        again = Kept()
        again.events.keep_in(memory)
        log.info(event("d"))
        again.gone()
        return await again.all()

    assert [(each.number, each.event) for each in asyncio.run(run())] == [(1, "a"), (3, "c"), (4, "d")]


def test_a_child_of_the_supervisor_keeps_nothing(memory: SharedMemory) -> None:
    async def run() -> list[Event]:
        kept = Kept()
        kept.events.keep_in(memory)
        child = os.fork()
        if not child:
            log.error(event("worker-failed"))
            os._exit(0)
        os.waitpid(child, 0)
        kept.gone()
        return await kept.all()

    assert asyncio.run(run()) == []


def test_who_follows_is_told_at_once(memory: SharedMemory) -> None:
    async def run() -> None:
        kept = Kept()
        kept.events.keep_in(memory)
        log.info(event("a"))
        waiting = [asyncio.create_task(kept.events.after(1, 30)) for _ in range(20)]
        await asyncio.sleep(0)
        log.info(event("b"))
        async with asyncio.timeout(5):
            found = await asyncio.gather(*waiting)
        assert [[each.event for each in events] for events in found[:8]] == [["b"]] * 8
        assert found[8:] == [[]] * 12  # more than that wait for themselves
        assert await kept.events.after(2, 0.01) == []
        assert [each.event for each in await kept.events.after(77, 30)] == ["a", "b"]
        kept.gone()

    asyncio.run(run())


def fields(datagram: bytes) -> dict[str, str]:
    """What journald reads of a datagram (its native protocol)."""
    found = {}
    while datagram:
        name, _, datagram = datagram.partition(b"\n")
        length = int.from_bytes(datagram[:8], "little")
        found[name.decode()] = datagram[8 : 8 + length].decode()
        assert datagram[8 + length : 9 + length] == b"\n"
        datagram = datagram[9 + length :]
    return found


def test_journald_gets_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "journal"))
        handler = Journal(str(tmp_path / "journal"))
        logger = logging.Logger("x")
        logger.addHandler(handler)
        logger.warning(event("backend-down", service="web", backend="web 1", cause="two\nlines"))
        said = fields(journald.recv(4_096))
        logger.info("plain")
        assert fields(journald.recv(4_096))["MESSAGE"] == "plain"
        logger.error(event("huge", cause="x" * 1_000_000))
    logger.error(event("nobody-listens"))
    handler.close()
    assert said == {
        "PRIORITY": "4",
        "MESSAGE": 'event=backend-down service=web backend="web 1" cause="two\\nlines"',
        "SYSLOG_IDENTIFIER": "loaded-mp",
        "EVENT": "backend-down",
        "SERVICE": "web",
        "BACKEND": "web 1",
        "CAUSE": "two\nlines",
    }
    lines = capsys.readouterr().err.splitlines()
    assert [line[:14] for line in lines] == ["<3>event=huge ", "<3>event=nobod"]


def test_only_our_own_lines_are_debugged(capsys: pytest.CaptureFixture[str]) -> None:
    root, mine = logging.getLogger(), logging.getLogger("loaded_mp")
    before = root.handlers[:], root.level
    try:
        ours.start_log("debug")
        for name in ("loaded_mp.checks", "asyncio", "pyroute2.netlink"):
            logging.getLogger(name).debug("%s speaks", name)
            logging.getLogger(name).error("%s errs", name)
        ours.set_level("error")
        mine.info(event("kept-but-not-shown"))
        assert mine.isEnabledFor(logging.INFO)
    finally:
        root.handlers[:], root.level = before
    said = [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "loaded_mp.checks speaks", "loaded_mp.checks errs", "asyncio errs", "pyroute2.netlink errs"
    ]  # fmt: skip
