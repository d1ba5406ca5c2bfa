"""The demo as a user runs it, without a terminal."""

import signal
import subprocess
from pathlib import Path

import pytest

from loaded_mp.lab.lab import loaded_mp
from loaded_mp.lab.wait import wait_until


def traces() -> set[str]:
    """What a lab could leave behind."""
    namespaces = {path.name for path in Path("/run/netns").glob("lmp*")}
    return namespaces | {path.name for path in Path("/tmp").glob("lmp*")}


def test_every_step_passes_and_nothing_is_left() -> None:
    before = traces()
    done = subprocess.run([loaded_mp(), "demo"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout
    assert "none failed" in done.stdout
    assert traces() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(number: signal.Signals) -> None:
    before = traces()
    # Where this process was started to ignore it, as shells do in the background, the demo would too.
    signal.signal(number, signal.default_int_handler)
    with subprocess.Popen([loaded_mp(), "demo"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if line.startswith("... ping"):
                break
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(60) == 1
    wait_until(lambda: traces() == before, "everything is removed")
