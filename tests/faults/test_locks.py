"""iptables hangs, or waits for a lock of others: that holds up nobody, and the daemon stops when told."""

import fcntl
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until

METRICS = ("curl", "-sfS", "-m", "2", "http://127.0.0.1:9128/metrics")
ANSWER_S = 1.0  #: of the daemon, whatever hangs
STOP_S = 12.0  #: with nothing to say goodbye to; systemd waits for 15 s
OTHER_VIP = "192.0.2.77"

#: In front of a real command: hangs while a file `hang` beside it has the end of its name, fails while there
#: is a file `fail`.
STAND_IN = """#!/bin/sh
cd {folder}
[ -e fail ] && {{ echo told to fail >&2; exit 3; }}
while [ -e hang ] && case {name} in *$(cat hang)) ;; *) false ;; esac; do touch hangs; sleep 0.05; done
exec {real} "$@"
"""


class Stubborn:
    """The commands of iptables that the daemons of a test call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for family in ("iptables", "ip6tables"):
            for name in (family, f"{family}-save", f"{family}-restore"):
                real = shutil.which(name)
                assert real
                (folder / name).write_text(STAND_IN.format(folder=folder, name=name, real=real))
                (folder / name).chmod(0o755)

    @contextmanager
    def hanging(self, suffix: str) -> Iterator[None]:
        (self._folder / "hang").write_text(suffix)
        try:
            yield
        finally:
            (self._folder / "hang").unlink()
            (self._folder / "hangs").unlink(missing_ok=True)

    def hangs(self) -> None:
        """Wait until one does."""
        wait_until((self._folder / "hangs").exists, "a command hangs")

    @contextmanager
    def failing(self) -> Iterator[None]:
        (self._folder / "fail").touch()
        yield
        (self._folder / "fail").unlink()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=6)) as lab:
        yield lab


@pytest.fixture
def iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubborn:
    stubborn = Stubborn(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return stubborn


def config(lab: Lab, forwarding: str = "rewrite", top: str = "") -> str:
    text = lab.config(workers=2, top=top, service=f'forwarding = "{forwarding}"')
    return text.replace('metrics_listen = ""\n', "")


def started(lab: Lab, text: str) -> tuple[Daemon, Path]:
    """A daemon, without waiting for it, and the file that it reads again."""
    path = lab.folder / "locks.toml"
    path.write_text(text)
    return lab.start_daemon("-c", str(path)), path


def asked_to_reload(daemon: Daemon, path: Path) -> None:
    path.write_text(path.read_text().replace(f'vips = ["{VIP4}"', f'vips = ["{OTHER_VIP}", "{VIP4}"'))
    daemon.process.send_signal(signal.SIGHUP)


def goes_on(lab: Lab, daemon: Daemon) -> None:
    """Status, scrapes, checks, the replacement of workers that died or hang, and packets go on."""
    asked_s = time.monotonic()
    before = daemon.status()
    assert "loaded_mp_counters_age_seconds" in lab.balancer.run(*METRICS).stdout
    assert time.monotonic() - asked_s < 2 * ANSWER_S
    dying, hanging = (each.pid for each in before.workers)
    os.kill(dying, signal.SIGKILL)
    os.kill(hanging, signal.SIGSTOP)
    lab.backends[1].stop_web()
    try:
        wait_until(lambda: not daemon.backends()[lab.backends[1].ipv4].up, "backend2 is down", 4)
        wait_until(
            lambda: (
                {dying, hanging}.isdisjoint(pids := [each.pid for each in daemon.status().workers])
                and all(pids)
            ),
            "both workers are replaced",
            4,
        )
        assert daemon.log.count("event=worker-hangs") == 1
        answers = lab.answers("http", VIP4, 1, lab.sources4)
        assert {name for names in answers.values() for name in names} <= {"backend1", "backend3"}
    finally:
        lab.backends[1].start_web()
    wait_until(lambda: daemon.backends()[lab.backends[1].ipv4].up, "backend2 is up again")


def is_clean(lab: Lab) -> bool:
    return "LOADED" not in lab.balancer.run("iptables-save").stdout


@pytest.mark.long
def test_counters_that_cannot_be_read_hold_up_nobody_and_say_their_age(lab: Lab, iptables: Stubborn) -> None:
    daemon = started(lab, config(lab, "conntrack"))[0].ready()
    wait_until(lambda: daemon.status().counters_age_s < 0.5, "a reading")
    with iptables.hanging("-save"):
        iptables.hangs()
        goes_on(lab, daemon)
        fault = wait_until(lambda: daemon.status().counters_fault, "a fault of the reading", 15)
        assert re.fullmatch(r"ip6?tables-save did not end in time: is another one stuck\?", fault)
        age_s = daemon.status().counters_age_s
        assert age_s > 9
        said = lab.balancer.run(*METRICS).stdout
        (metric,) = re.findall(r"^loaded_mp_counters_age_seconds ([\d.]+)$", said, re.MULTILINE)
        assert float(metric) >= age_s
        assert fault in " ".join(lab.balancer.run(loaded_mp(), "status").stdout.split())
    wait_until(lambda: not daemon.status().counters_fault, "a reading that succeeds", 15)
    assert daemon.status().counters_age_s < age_s
    assert daemon.log.count("event=counters-not-read") == daemon.log.count("event=counters-read ") == 1
    daemon.stop()
    assert is_clean(lab)


def test_a_reload_that_hangs_holds_up_nobody(lab: Lab, iptables: Stubborn) -> None:
    daemon, path = started(lab, config(lab))
    daemon.ready()
    with iptables.hanging("-restore"):
        asked_to_reload(daemon, path)
        iptables.hangs()
        goes_on(lab, daemon)
        refused = lab.balancer.run(loaded_mp(), "restart", check=False)
        assert refused.stderr.startswith("a reload is under way")
        assert "event=reloaded" not in daemon.log
    daemon.logged("event=reloaded services=1")
    assert OTHER_VIP in lab.balancer.run("iptables-save").stdout
    daemon.stop()
    assert is_clean(lab)


@contextmanager
def lock_held(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.long
def test_a_lock_that_others_hold_refuses_a_reload(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of iptables-legacy, whose commands wait for it."""
    monkeypatch.setenv("LOADED_MP_IPTABLES", "legacy")
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    daemon, path = started(lab, config(lab))
    daemon.ready()
    with lock_held(tmp_path / "lock"):
        asked_to_reload(daemon, path)
        goes_on(lab, daemon)
        daemon.logged("event=reload-refused", 25)
        assert "holding the xtables lock" in daemon.log
    asked_to_reload(daemon, path)
    daemon.logged("event=reloaded services=1")
    daemon.stop()
    assert "LOADED" not in lab.balancer.run("iptables-legacy-save").stdout


@pytest.mark.long
@pytest.mark.parametrize("by_command", [True])
def test_sigterm_during_a_reload_that_hangs_is_obeyed(lab: Lab, iptables: Stubborn, by_command: bool) -> None:
    daemon, path = started(lab, config(lab))
    daemon.ready()
    with iptables.hanging("-restore"):
        if by_command:
            path.write_text(path.read_text().replace(VIP4, f'{OTHER_VIP}", "{VIP4}'))
            lab.balancer.start(loaded_mp(), "reload")
        else:
            asked_to_reload(daemon, path)
        iptables.hangs()
        daemon.process.terminate()
        # The rules cannot be taken down: the status says so, the record keeps them.
        assert daemon.process.wait(STOP_S) == 1
    assert "event=not-taken-back" in daemon.log
    assert "Traceback" not in daemon.log, daemon.log
    assert not is_clean(lab)
    lab.balancer.run(loaded_mp(), "cleanup")
    assert is_clean(lab)


def test_sigterm_once_a_reload_that_hung_can_go_on_takes_all_back(lab: Lab, iptables: Stubborn) -> None:
    daemon, path = started(lab, config(lab, top="goodbye_s = 2"))
    daemon.ready()
    with iptables.hanging("-restore"):
        asked_to_reload(daemon, path)
        iptables.hangs()
        daemon.process.terminate()
        daemon.logged("event=stopping")
    daemon.stop()
    assert is_clean(lab)


def test_sigterm_during_a_switch_of_forwarding_tells_both_ends(lab: Lab, iptables: Stubborn) -> None:
    """What goes over to another way is dropped meanwhile; what a stop tells is not."""
    daemon, path = started(lab, config(lab, top="goodbye_s = 2"))
    daemon.ready()
    talking = [Line(lab.client, VIP4, source) for source in lab.sources4]
    assert all(line.ask().endswith("hello") for line in talking)
    with iptables.hanging("-restore"):
        path.write_text(config(lab, "conntrack", top="goodbye_s = 2"))
        daemon.process.send_signal(signal.SIGHUP)
        iptables.hangs()
        daemon.process.terminate()
        daemon.logged("event=goodbye")
        for line in talking:
            line.say()
        assert [line.hear(4) for line in talking] == ["reset"] * len(talking)
    daemon.stop()
    assert is_clean(lab)


@pytest.mark.long
def test_sigterm_during_a_start_that_hangs_is_obeyed(lab: Lab, iptables: Stubborn) -> None:
    with iptables.hanging("-restore"):
        daemon, _ = started(lab, config(lab))
        iptables.hangs()
        daemon.process.terminate()
        daemon.process.wait(STOP_S)
    assert "event=ready" not in daemon.log
    assert "event=stopped" in daemon.log
    lab.balancer.run(loaded_mp(), "cleanup")
    assert is_clean(lab)


def test_sighup_before_the_daemon_is_ready_waits_and_is_obeyed(lab: Lab, iptables: Stubborn) -> None:
    with iptables.hanging("-restore"):
        daemon, path = started(lab, config(lab))
        iptables.hangs()
        asked_to_reload(daemon, path)
    daemon.ready().logged("event=reloaded services=1")
    assert daemon.log.index("event=ready") < daemon.log.index("event=reloaded")
    assert OTHER_VIP in lab.balancer.run("iptables-save").stdout
    daemon.stop()


def killed(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait(5)


def all_served(lab: Lab) -> bool:
    answers = lab.answers("http", VIP4, 1, lab.sources4)
    return {name for names in answers.values() for name in names} <= {"backend1", "backend2", "backend3"}


def test_a_start_whose_port_is_taken_leaves_workers_to_the_next(lab: Lab) -> None:
    daemon, path = started(lab, config(lab))
    workers = [each.pid for each in daemon.ready().status().workers]
    killed(daemon)
    other = lab.balancer.talk(
        "python3",
        "-c",
        "import socket; held = socket.create_server(('127.0.0.1', 9128)); print(1, flush=True); input()",
    )
    assert other.stdout
    assert other.stdout.readline() == "1\n"
    failed = lab.start_daemon("-c", str(path))
    assert failed.process.wait(20) == 1
    assert "event=start-failed" in failed.log
    assert "9128" in failed.log
    assert set(workers) <= set(lab.balancer.processes())
    assert all_served(lab)
    other.communicate("\n", timeout=5)
    daemon = lab.start_daemon("-c", str(path)).ready()
    assert "event=handed-over workers=2" in daemon.log
    daemon.stop()


def test_a_start_that_fails_after_its_workers_run_leaves_them_to_the_next(
    lab: Lab, iptables: Stubborn
) -> None:
    daemon, path = started(lab, config(lab))
    daemon.ready()
    killed(daemon)
    path.write_text(path.read_text().replace(VIP4, f'{OTHER_VIP}", "{VIP4}'))
    with iptables.failing():
        failed = lab.start_daemon("-c", str(path))
        assert failed.process.wait(20) == 1
    assert "event=start-failed" in failed.log
    assert "told to fail" in failed.log
    assert "event=workers-left workers=2" in failed.log
    assert all_served(lab)
    daemon = lab.start_daemon("-c", str(path)).ready()
    assert "event=handed-over workers=2" in daemon.log
    assert all_served(lab)
    daemon.stop()
    assert is_clean(lab)


def test_stop_ends_the_daemon_and_waits_for_that(lab: Lab) -> None:
    daemon = started(lab, config(lab))[0].ready()
    assert lab.balancer.run(loaded_mp(), "stop").stdout == "stopped\n"
    assert is_clean(lab)
    assert daemon.process.wait(2) == 0
    again = lab.balancer.run(loaded_mp(), "stop", check=False)
    assert again.returncode == 1
    assert "no loaded-mp runs in this network namespace" in again.stderr
