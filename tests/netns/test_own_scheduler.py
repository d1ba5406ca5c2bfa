"""A scheduler of the operator's own on a real daemon: followed, mended, refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.wait import wait_until

SOURCES = 24
ONE = "def slots(backends):\n    return [each for each in backends if each.name == '{}']\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        yield lab


def said(lab: Lab, *words: str, status: int = 0) -> str:
    done = lab.balancer.run(loaded_mp(), *words, check=False, timeout_s=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_a_file_says_is_done_and_what_is_wrong_with_it_is_said(lab: Lab) -> None:
    file, path = lab.folder / "mine.py", lab.folder / "own.toml"
    file.write_text("def slots(backends):\n    return backend\n")
    path.write_text(lab.config(workers=2, checked=False, service=f'scheduler = "{file}"'))
    broken = f"{file}:2: scheduler of web: NameError: name 'backend' is not defined"
    assert broken in said(lab, "check-config", "-c", str(path), status=2)
    refused = lab.start_daemon("-c", str(path))
    assert refused.process.wait(20) == 2
    assert broken in refused.log

    file.write_text(ONE.format("backend2"))
    daemon = lab.start_daemon("-c", str(path)).ready()
    sources = iter(lab.sources4)

    def who() -> str:
        """Who gets the next new client."""
        ((name,),) = lab.answers("http", VIP4, 1, [next(sources)]).values()
        return name

    assert {who() for _ in range(4)} == {"backend2"}
    file.write_text(ONE.format("backend3"))
    wait_until(lambda: who() == "backend3", "the edit to hold")
    file.write_text("import os\nos._exit(3)\n")

    def fault() -> str:
        return daemon.status().services[0].scheduler_fault

    wait_until(lambda: "ended with status 3" in fault(), "the fault")
    assert "scheduler fails: " in said(lab, "status")
    assert "scheduler-failed" in said(lab, "events")
    assert "ended with status 3" in said(lab, "reload", status=2)
    assert who() == "backend3"
    # A restart needs a file that is good, and goes on with the slots that there were.
    assert "ended with status 3" in said(lab, "restart", status=1)
    file.write_text(ONE.format("backend3"))
    wait_until(lambda: not fault(), "no fault")
    said(lab, "restart")
    assert who() == "backend3"
    found = said(lab, "whatif", "--scheduler", _other(file), "-s", "web")
    assert "backend1 10.0.0.1" in found
    assert "100.0%" in found
    said(lab, "drain", "backend3")
    assert who() != "backend3"
    daemon.stop()
    assert daemon.log.count("scheduler-failed") == 1 + 1  # and that nobody is left whom it names


def _other(file: Path) -> str:
    other = file.with_name("other.py")
    other.write_text(ONE.format("backend1"))
    return str(other)
