"""What is taken out of workers that a supervisor has left behind, by stand-ins."""

import os
import pwd
from collections.abc import Iterator

import pytest

from loaded_mp.config.user import default_user
from loaded_mp.supervisor import handover


def descriptors() -> set[int]:
    folder = "/proc/self/fd"
    return {int(each) for each in os.listdir(folder) if os.path.exists(f"{folder}/{each}")}


def test_what_an_orphan_gave_before_it_could_not_be_read_is_not_left_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def taken(pid: int) -> Iterator[int]:
        yield os.open("/dev/null", os.O_RDONLY)
        raise PermissionError("no")

    monkeypatch.setattr(handover, "orphans", lambda: [1, 2])
    monkeypatch.setattr(handover, "_taken", taken)
    monkeypatch.setattr(handover, "_queue_of", lambda descriptor: 7)
    before = descriptors()
    assert handover.taken_from_orphans() is None
    assert descriptors() == before
    assert caplog.text.count("event=orphan-unreadable") == 2


def test_only_what_is_used_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def taken(pid: int) -> Iterator[int]:
        opened.append(os.memfd_create("loaded-mp"))
        yield opened[-1]
        opened.append(os.open("/dev/null", os.O_RDONLY))
        yield opened[-1]
        if pid == 2:
            raise ProcessLookupError("it ended")

    monkeypatch.setattr(handover, "orphans", lambda: [1, 2])
    monkeypatch.setattr(handover, "_taken", taken)
    monkeypatch.setattr(handover, "_queue_of", lambda descriptor: 7)
    before = descriptors()
    found = handover.taken_from_orphans()
    assert found == handover.Inherited(memory=opened[0], queues={7: opened[1]}, workers=[1, 2])
    assert descriptors() - before == {*opened[:2]}
    for each in opened[:2]:
        os.close(each)


def test_workers_have_a_user_of_their_own_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    root = pwd.getpwuid(0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, *root[1:])))
    assert default_user() == "loaded-mp"
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    assert default_user() == "nobody"
