"""A scheduler of the operator's own on a real daemon: followed, mended, refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import TypeAdapter
from pydantic_core import to_json

from loaded_mp.control.client import _post
from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import Event, Forecast, Outcome, ServiceStatus

Answer = TypeVar("Answer")
SOURCES = 24
ONE = "def slots(backends):\n    return [each for each in backends if each.name == '{}']\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        yield lab


def asked(lab: Lab, answer_type: type[Answer], command: str, **arguments: object) -> Answer:
    body = to_json(arguments)
    return TypeAdapter(answer_type).validate_json(
        _post(f"/{command}", body, f"/run/netns/{lab.balancer.name}", lambda: None)
    )


def rewrite(file: Path, text: str) -> None:
    """At once, as it may be read at any moment."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_what_a_file_says_is_done_and_what_is_wrong_with_it_is_said(lab: Lab) -> None:
    file, path = lab.folder / "mine.py", lab.folder / "own.toml"
    file.write_text("def slots(backends):\n    return backend\n")
    path.write_text(lab.config(workers=2, checked=False, service=f'scheduler = "{file}"'))
    broken = f"{file}:2: scheduler of web: NameError: name 'backend' is not defined"
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
    rewrite(file, ONE.format("backend3"))
    wait_until(lambda: who() == "backend3", "the edit to hold")
    rewrite(file, "import os\nos._exit(3)\n")

    def fault() -> str:
        return daemon.status().services[0].scheduler_fault

    wait_until(lambda: "ended with status 3" in fault(), "the fault")
    (event,) = (each for each in asked(lab, list[Event], "events") if each.event == "scheduler-failed")
    assert event.cause == f"{file}: ended with status 3, and gave no slots"
    assert "ended with status 3" in asked(lab, Outcome, "reload").mistakes[0]
    assert who() == "backend3"
    rewrite(file, ONE.format("backend3"))
    wait_until(lambda: not fault(), "no fault")
    assert lab.balancer.run(loaded_mp(), "restart", timeout_s=60).returncode == 0
    assert who() == "backend3"
    other = file.with_name("other.py")
    other.write_text(ONE.format("backend1"))
    found = asked(lab, Forecast, "whatif", scheduler=str(other)).services[0]
    assert [each.share_then for each in found.spread] == [1, 0, 0]
    asked(lab, list[ServiceStatus], "drain", backend="backend3")
    assert who() != "backend3"
    wait_until(lambda: bool(fault()), "the word that nobody is left whom it names")
    daemon.stop()
    assert daemon.log.count("scheduler-failed") == 1 + 1
