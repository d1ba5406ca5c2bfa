"""The operator's words on a real kernel: what clients notice, and that the words last."""

import grp
import inspect
import json
import os
import pty
import re
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loaded_mp.control.client import ControlError, _post
from loaded_mp.control.commands import COMMANDS, Commands
from loaded_mp.lab.clients import KINDS
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIPS, Lab, Options
from loaded_mp.lab.talk import Clients, Talk
from loaded_mp.lab.wait import wait_until

SOURCES = 125
PAGE = (Path(__file__).parents[2] / "docs/control.md").read_text()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=SOURCES)) as lab:
        lab.big_file(1)
        yield lab


@pytest.fixture(params=["rewrite", "conntrack"])
def daemon(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config(workers=2, service=f'forwarding = "{request.param}"\nunconfirmed_s = 1'))
    yield daemon
    daemon.stop()


@pytest.fixture
def plain(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(lab.config(workers=2))
    yield daemon
    daemon.stop()


def say(lab: Lab, *words: str) -> str:
    return lab.balancer.run(loaded_mp(), *words).stdout


def who(answers: dict[str, list[str]]) -> set[str]:
    return {name for names in answers.values() for name in names}


def test_draining_breaks_no_connection_and_brings_no_new_client(lab: Lab, daemon: Daemon) -> None:
    # The first half of the sources are clients; the others come later.
    clients = Clients(lab, VIP4, 1)
    before = daemon.backends()["10.0.0.1"].flows
    assert before > SOURCES / 5
    assert say(lab, "drain", "backend1").splitlines() == [
        f"web backend1 10.0.0.1: drain, weight 0/1, {before} flows",
        "web backend1 fd00::1: drain, weight 0/1, 0 flows",
    ]
    assert who(lab.answers("http", VIPS[1], 1, lab.sources6)) == {"backend2", "backend3"}
    done = lab.balancer.run(loaded_mp(), "drain", "10.0.0.1", "--wait", "0.1", check=False)
    assert (done.returncode, done.stderr) == (1, f"after 0.1 s {before} flows are left; they stay\n")
    lab.let_backends_speak()
    assert clients.served() == f"{KINDS * SOURCES} []"
    assert daemon.backends()["10.0.0.1"].flows == before


def test_maintenance_moves_clients_with_their_next_packet(lab: Lab, daemon: Daemon) -> None:
    homes = lab.answers("http", VIP4, 1, lab.sources4)
    source = next(source for source, names in homes.items() if names == ["backend1"])
    talk = Talk(lab, VIP4, source)
    assert talk.ask() == "backend1"
    say(lab, "maintenance", "backend1")
    moved = lab.answers("http", VIP4, 1, lab.sources4)
    assert who(moved) == {"backend2", "backend3"}
    stayed = [source for source, names in homes.items() if names != ["backend1"]]
    assert all(moved[source] == homes[source] for source in stayed)
    say(lab, "ready", "backend1")
    assert "backend1" in who(lab.answers("http", VIPS[1], 1, lab.sources6))


def test_words_outlive_reload_restart_and_crash(lab: Lab) -> None:
    path = lab.folder / "words.toml"
    path.write_text(lab.config(workers=2))
    daemon = lab.start_daemon("-c", str(path)).ready()

    def words() -> dict[str, tuple[str, int | None, int]]:
        return {
            address: (str(each.wanted), each.weight_wanted, each.effective_weight)
            for address, each in daemon.backends().items()
            if "." in address
        }

    say(lab, "maintenance", "backend1")
    say(lab, "weight", "10.0.0.2", "7")
    wanted = {
        "10.0.0.1": ("maintenance", None, 0),
        "10.0.0.2": ("ready", 7, 7),
        "10.0.0.3": ("ready", None, 1),
    }
    assert words() == wanted
    path.write_text(path.read_text().replace("rise = 2", "rise = 3"))
    assert say(lab, "reload").endswith("reloaded\n")
    assert words() == wanted
    following = lab.balancer.talk(loaded_mp(), "events", "--follow", "-n", "0")
    say(lab, "restart")
    assert words() == wanted
    assert following.stdout
    heard = ""
    while " ready " not in heard:
        heard = following.stdout.readline()
        assert heard
    following.terminate()
    following.communicate(timeout=10)
    daemon.process.kill()
    daemon.process.wait(10)
    daemon = lab.start_daemon("-c", str(path)).ready()
    assert words() == wanted
    assert who(lab.answers("http", VIP4, 1, lab.sources4)) == {"backend2", "backend3"}
    say(lab, "ready", "backend1")
    say(lab, "weight", "10.0.0.2", "default")
    assert {each.effective_weight for each in daemon.backends().values()} == {1}
    names = [json.loads(line)["event"] for line in say(lab, "events", "--json").splitlines()]
    after = iter(names)
    for name in ("backend-maintenance", "backend-weight", "reloaded", "restarting", "handed-over", "ready",
                 "handed-over", "ready", "backend-ready", "backend-weight"):  # fmt: skip
        assert name in after, names
    daemon.stop()


#: Asks as whoever it is.
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as control:
    control.connect(sys.argv[1])
    control.send(b"POST /checks HTTP/1.0\\r\\n\\r\\n")
    print(control.recv(99))
"""


def test_the_group_may_steer_and_others_may_not(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(workers=1, top='control_group = "daemon"'))
    path = f"/run/loaded-mp/{os.stat(f'/run/netns/{lab.balancer.name}').st_ino}.socket"

    def as_nobody(groups: str) -> subprocess.CompletedProcess[str]:
        words = ("setpriv", "--reuid=nobody", "--regid=nogroup", groups, "/usr/bin/python3", "-c", ASK, path)
        return lab.balancer.run(*words, check=False)

    assert "200 OK" in as_nobody(f"--groups={grp.getgrnam('daemon').gr_gid}").stdout
    assert "PermissionError" in as_nobody("--clear-groups").stderr
    daemon.stop()
    bad = lab.folder / "bad.toml"
    bad.write_text(lab.config(workers=1, top='control_group = "no-such"'))
    refused = lab.start_daemon("-c", str(bad))
    assert refused.process.wait(20) == 1
    assert "there is no group 'no-such'; make it with 'groupadd" in refused.log


@contextmanager
def terminal(lab: Lab, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command on the balancer in a terminal of 80 columns, and our end of it."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, 80))
    command = ("ip", "netns", "exec", lab.balancer.name, *words)
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.usefixtures("plain")
def test_top_is_live_and_ends_with_q(lab: Lab) -> None:
    with terminal(lab, loaded_mp(), "top", "-d", "0.2") as (top, ours):
        seen = b""

        def sees(text: str) -> bool:
            nonlocal seen
            seen += os.read(ours, 65_536)
            return text in seen.decode(errors="replace")

        wait_until(lambda: sees("backend1 10.0.0.1"), "the table")
        say(lab, "drain", "backend1")
        wait_until(lambda: sees("drain, weight 0/1"), "the drained backend")
        os.write(ours, b"q")
        assert top.wait(10) == 0


def same_shape(page: object, answer: object, where: str = "answer") -> None:
    """Keys and types; `...` stands for more of the same, null for what there may be."""
    if isinstance(page, dict):
        assert isinstance(answer, dict), where
        more = "..." in page
        assert set(page) - {"..."} <= set(answer) if more else set(page) == set(answer), where
        for key in set(page) - {"..."}:
            same_shape(page[key], answer[key], f"{where}.{key}")
    elif isinstance(page, list):
        assert isinstance(answer, list), where
        assert bool(page) == bool(answer), where
        assert page[-1:] == ["..."] or len(page) == len(answer), where
        like = page[:1] * len(answer) if page[-1:] == ["..."] else page
        for one, each in zip(like, answer, strict=True):
            same_shape(one, each, f"{where}[]")
    elif page is not None and answer is not None:
        number = (int, float)
        assert isinstance(answer, number if type(page) in number else type(page)), where


def test_the_page_of_the_control_socket_is_true(lab: Lab, plain: Daemon) -> None:
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert sorted(name for name, _ in sections) == sorted(COMMANDS)

    def answered(name: str, request: str) -> list[object]:
        try:
            return [json.loads(_post(f"/{name}", request.encode(), f"/run/netns/{lab.balancer.name}"))]
        except ControlError as error:
            if "refuses" in str(error):
                raise
            return []  # it begins anew

    lab.answers("http", VIPS[0], 1, lab.sources4)
    for name, text in sections:
        for argument in list(inspect.signature(getattr(Commands, name)).parameters)[1:]:
            assert f"`{argument}`" in text, f"{name}: {argument}"
        ((asked, request, page),) = re.findall(
            r"^```json POST /(\w+)\n(.*?)^```\n+```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
        )
        assert asked == name
        (answer,) = wait_until(lambda n=name, r=request: answered(n, r), f"an answer to {name}", 30)  # type: ignore[misc]
        same_shape(json.loads(page), answer, name)
    assert plain.process.wait(20) == 0
