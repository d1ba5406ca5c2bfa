"""Files that are none, never end or never come."""

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from loaded_mp.config.bounded import load_bounded
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.file import MAX_FILE_BYTES, read_file
from loaded_mp.config.model import Config
from loaded_mp.config.source import Source

TOML = """
[[service]]
name = "web"
vips = ["192.0.2.10"]
[[service.backend]]
address = "10.0.0.1"
"""
HANGING_S = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f.toml"
    path.write_text(TOML)
    return path


def mistakes(load: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load()
    return [str(each) for each in raised.value.mistakes]


def bounded(load: Callable[[], Config], timeout_s: float = 10.0) -> Config:
    """As the daemon would; nothing may be left of it."""
    before = os.listdir("/proc/self/fd")
    others = children()

    async def run() -> Config:
        try:
            return await load_bounded(load, timeout_s)
        finally:
            await reaped(others)

    config = asyncio.run(run())
    assert os.listdir("/proc/self/fd") == before
    return config


def children() -> set[str]:
    return {
        pid for each in Path("/proc/self/task").iterdir() for pid in (each / "children").read_text().split()
    }


async def reaped(before: set[str]) -> None:
    """Wait until no child is left but those of earlier tests."""
    async with asyncio.timeout(10):
        while children() - before:
            await asyncio.sleep(0.01)


def hang() -> Config:
    time.sleep(HANGING_S)
    raise AssertionError


@pytest.mark.parametrize("name", ["f", "f.toml"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    refused = [f"{path}: is a device or a pipe, expected a file"]
    assert mistakes(Source(path=path).load) == refused
    reader = os.open(path, os.O_RDWR)  # now opening it would not wait, but reading
    assert mistakes(Source(path=path).load) == refused
    os.close(reader)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path: str) -> None:
    assert mistakes(Source(path=Path(path)).load) == [f"{path}: is a device or a pipe, expected a file"]


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"#" * MAX_FILE_BYTES)
    assert len(read_file(path)) == MAX_FILE_BYTES
    os.truncate(path, 1 << 40)
    assert mistakes(Source(path=path).load) == [f"{path}: is too large, expected 1,048,576 bytes or less"]


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    for path, cause in ((tmp_path, "Is a directory"), (tmp_path / "f", "No such file or directory")):
        assert mistakes(partial(read_file, path)) == [f"{path}: cannot be read: {cause}"]


def test_a_bounded_load_gives_the_same(path: Path) -> None:
    load = Source(path=path).load
    assert bounded(load) == load()
    path.write_text(TOML + "nonsense = 1\n[service.check]\nport = 0\n")
    assert len(mistakes(load)) == 2
    assert mistakes(lambda: bounded(load)) == mistakes(load)


def test_what_hangs_is_given_up_and_the_loop_goes_on_meanwhile() -> None:
    longest_s = 0.0

    async def run() -> None:
        nonlocal longest_s
        loading = asyncio.create_task(load_bounded(hang, 0.5))
        seen_s = time.monotonic()
        while not loading.done():
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - seen_s)
            seen_s = time.monotonic()
        await loading

    begin_s = time.monotonic()
    said = "the configuration: was not read within 0.5 s; does it lie on a file system that hangs?"
    assert mistakes(lambda: asyncio.run(run())) == [said]
    assert time.monotonic() - begin_s < HANGING_S / 10
    assert longest_s < 0.4
    assert mistakes(lambda: bounded(hang, 0.1))


def test_a_cancelled_load_leaves_nothing() -> None:
    async def run() -> None:
        others = children()
        loading = asyncio.create_task(load_bounded(hang))
        await asyncio.sleep(0.1)
        loading.cancel()
        await asyncio.wait({loading})
        await reaped(others)

    asyncio.run(run())


def test_a_reader_that_dies_is_a_mistake() -> None:
    def end() -> Config:
        os._exit(3)

    def fail() -> Config:
        raise ZeroDivisionError

    for load in (end, fail):
        assert mistakes(partial(bounded, load)) == [
            "the configuration: its reader ended early; the log says why"
        ]


def test_no_socket_lives_on_in_the_reader(path: Path) -> None:
    def load() -> Config:
        held = sorted(map(int, os.listdir("/proc/self/fd")))
        # The streams, the pipe, and the folder that is listed.
        assert len(held) == 5
        return Source(path=path).load()

    assert bounded(load)
