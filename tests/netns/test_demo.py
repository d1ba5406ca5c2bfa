"""The demo as a user runs it, without a terminal."""

import signal
import subprocess
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.wait import wait_until


def traces(demo: subprocess.Popen[str]) -> list[Path]:
    """What its lab has left behind."""
    return [path for folder in ("/run/netns", "/tmp") for path in Path(folder).glob(f"lmp{demo.pid}.*")]


def test_every_step_passes_and_nothing_is_left() -> None:
    with subprocess.Popen(
        [loaded_mp(), "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        said, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, said
    assert "BAD" not in said
    assert "none failed" in said
    assert not traces(demo)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(each, marks=pytest.mark.long) for each in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_interrupted_it_leaves_nothing(number: signal.Signals) -> None:
    # Where this process was started to ignore it, as shells do in the background, the demo would too.
    signal.signal(number, signal.default_int_handler)
    with subprocess.Popen([loaded_mp(), "demo"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if line.startswith("... ping"):
                break
        assert traces(demo)
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(60) == 1
    wait_until(lambda: not traces(demo), "everything is removed")
