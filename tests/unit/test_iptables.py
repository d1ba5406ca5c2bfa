"""Calls of iptables: what they say, and how long they are waited for."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.network import iptables
from loaded_mp.network.changes import AddChain
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.patience import Patience, patience

CHAIN = AddChain(family=4, table="raw", hook="PREROUTING", name="LOADED-TEST", rules=(), why="a test")
HANGS = "sleep 60"
LOCKED = 'echo "Another app is currently holding the xtables lock." >&2; exit 4'


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is searched first."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv(iptables.VARIANT, raising=False)
    return tmp_path


@pytest.fixture
def short() -> Iterator[Patience]:
    mine = Patience(0.3)
    token = patience.set(mine)
    yield mine
    patience.reset(token)


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_is_said_comes_back(commands: Path) -> None:
    program(commands / "iptables-save", "echo '*raw'; echo '-A LOADED-TEST -j DROP'")
    assert iptables.rules("iptables", "raw") == ["-A LOADED-TEST -j DROP"]
    program(commands / "iptables-save", "echo no such table >&2; exit 3")
    with pytest.raises(NetworkError, match=r"^iptables-save: no such table$"):
        iptables.rules("iptables", "raw")


def test_what_hangs_is_ended_and_the_next_is_not_waited_for(commands: Path, short: Patience) -> None:
    program(commands / "iptables", HANGS)
    program(commands / "iptables-restore", HANGS)
    began_s = time.monotonic()
    for undone in range(20):
        with pytest.raises(NetworkError, match="did not end in time"):
            (iptables.undo if undone else iptables.apply)(CHAIN)
    assert time.monotonic() - began_s < 3


def test_success_renews_the_patience(commands: Path, short: Patience) -> None:
    program(commands / "iptables-save", "sleep 0.15")
    for _ in range(4):
        assert iptables.rules("iptables", "raw") == []


def test_a_lock_that_others_hold_ends_the_matter(commands: Path) -> None:
    program(commands / "iptables", LOCKED)
    program(commands / "iptables-restore", "touch called")
    with pytest.raises(NetworkError, match=r"^iptables: Another app is currently holding the xtables lock"):
        iptables.apply(CHAIN)


def test_a_command_that_is_not_there(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(commands))
    with pytest.raises(NetworkError, match="install the package iptables"):
        iptables.rules("iptables", "raw")
