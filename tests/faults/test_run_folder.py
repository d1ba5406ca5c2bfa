"""/run is full or read-only: a reload is refused with one line, and what runs goes on."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.wait import wait_until

#: `ip netns exec` gives each program mounts of its own.
START = "mount -t tmpfs -o size=64k tmpfs /run/loaded-mp && exec {command} -c {path}"


def fill(process: int) -> None:
    path = Path(f"/proc/{process}/root/run/loaded-mp/filler")
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))


def make_read_only(process: int) -> None:
    for words in ("--bind /run/loaded-mp /run/loaded-mp", "-o remount,bind,ro /run/loaded-mp"):
        subprocess.run(["nsenter", "-m", "-t", str(process), "mount", *words.split()], check=True)


@pytest.mark.parametrize("spoil", [fill, make_read_only])
def test_a_reload_that_cannot_be_recorded_is_refused(spoil: Callable[[int], None]) -> None:
    with Lab(Options(sources=6)) as lab:
        Path("/run/loaded-mp").mkdir(exist_ok=True)
        config = lab.config(workers=2, checked=False)
        path = lab.folder / "run.toml"
        path.write_text(config)
        daemon = lab.start_daemon_by("sh", "-c", START.format(command=loaded_mp(), path=path)).ready()
        before = lab.answers("http", VIP4, 1, lab.sources4)
        rules = lab.balancer.run("iptables-save").stdout
        spoil(daemon.process.pid)
        path.write_text(config.replace(VIP4, "192.0.2.77"))
        os.kill(daemon.process.pid, signal.SIGHUP)
        daemon.logged("event=reload-refused")
        assert daemon.log.count("level=error") == 1
        assert lab.balancer.run("iptables-save").stdout.count("LOADED") == rules.count("LOADED")
        assert "192.0.2.77" not in lab.balancer.run("iptables-save").stdout
        assert lab.answers("http", VIP4, 1, lab.sources4) == before
        path.write_text(config)
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_until(lambda: "changed=nothing" in daemon.log, "a reload without changes is fine")
