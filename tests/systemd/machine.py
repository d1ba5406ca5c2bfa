"""A systemd of its own, process 1 over the files of this machine, in the network of a lab's balancer."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from loaded_mp.lab.lab import Lab
from loaded_mp.lab.wait import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
DEPLOY = Path(__file__).parents[2] / "deploy"

#: Everything that is written goes into memory; of /proc/sys only this network's part can be written.
_BOOT = """
set -eu
top=$1 program=$2
mount -t tmpfs tmpfs "$top"
mkdir "$top"/upper "$top"/work "$top"/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top"/root
cd "$top"/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
for each in null zero full random urandom tty; do touch dev/$each; mount --bind /dev/$each dev/$each; done
ln -s /proc/self/fd dev/fd
mkdir -p etc/loaded-mp usr/local/bin etc/systemd/system usr/lib/sysusers.d
ln -sf "$program" usr/local/bin/loaded-mp
# It would empty /tmp, where the program may be.
ln -s /dev/null etc/systemd/system/systemd-tmpfiles-setup.service
cp "$3"/loaded-mp.service etc/systemd/system/
cp "$3"/loaded-mp.sysusers usr/lib/sysusers.d/loaded-mp.conf
chroot . systemd-sysusers
exec env -i container=lab PATH="$PATH" chroot . /lib/systemd/systemd --system --unit=basic.target
"""


def missing() -> str:
    """What this machine lacks for a systemd of its own; empty: nothing."""
    if os.geteuid() != 0:
        return "root is needed"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}"
    groups = _control_groups()
    if not groups or not os.access(groups, os.W_OK):
        return "control groups of version 2 cannot be made here"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--cgroup", "--fork", "true"], capture_output=True, check=False
    )
    return "" if done.returncode == 0 else "namespaces cannot be made here"


class Machine:
    """The balancer of a lab as a machine that systemd runs."""

    def __init__(self, systemd: int) -> None:
        self._systemd = systemd  #: its process, as seen from here

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on it to its end. Raises RuntimeError if it fails and `check` is set."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=120, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: status {done.returncode}: {done.stderr}\n{self.log()}")
        return done

    def command(self, *words: str) -> list[str]:
        """The words by which a program is run on it."""
        return ["nsenter", f"--target={self._systemd}", "-m", "-p", "-n", "-C", "-r", "-w", *words]

    def write(self, path: str, text: str) -> None:
        """Write a file on it."""
        subprocess.run(
            self.command("sh", "-c", f"mkdir -p $(dirname {path}); cat >{path}"),
            input=text,
            text=True,
            check=True,
        )

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "--value", "-p", name, "loaded-mp").stdout.strip()

    def log(self) -> str:
        """What the unit has logged so far."""
        return subprocess.run(
            self.command("journalctl", "-u", "loaded-mp", "-o", "cat", "--no-pager"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def logged(self, text: str, since: int = 0) -> None:
        """Wait until the log holds `text` after its first `since` characters. Raises TimeoutError."""
        wait_until(lambda: text in self.log()[since:], f"{text!r} in the log:\n{self.log()[since:]}", 30.0)

    def processes(self) -> dict[str, str]:
        """The user of each process that loaded-mp has, by the process's number."""
        said = self.run("ps", "-eo", "pid=,user:20=,comm=").stdout
        rows = [line.split() for line in said.splitlines()]
        return {pid: user for pid, user, name, *_ in rows if name.startswith("loaded-mp")}


@contextlib.contextmanager
def booted(lab: Lab, program: str) -> Iterator[Machine]:
    """A machine with the shipped unit, its `program` and its user, as long as the context lasts."""
    groups = _control_groups()
    assert groups
    group = groups / f"loaded-mp-{os.getpid()}"
    group.mkdir()
    top = lab.folder / "machine"
    top.mkdir()
    namespaces = f"--net=/run/netns/{lab.balancer.name}"
    own = "--mount --pid --uts --ipc --cgroup --fork --kill-child --propagation private"
    enter = f'echo $$ >{group}/cgroup.procs; exec nsenter {namespaces} unshare {own} sh -c "$@"'
    words = ["sh", "-c", enter, "sh", _BOOT, "boot", str(top), program, str(DEPLOY)]
    log = lab.folder / "boot.log"
    with log.open("w") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def systemd() -> int:
            if process.poll() is not None:
                raise RuntimeError(f"no systemd came up:\n{log.read_text()}")
            text = children.read_text().split()
            first = int(text[0]) if text else 0
            return first if first and Path(f"/proc/{first}/comm").read_text() == "systemd\n" else 0

        machine = Machine(wait_until(systemd, "systemd is process 1", 30.0))
        # "degraded": another service of this machine's files has failed.
        asking = ("systemctl", "is-system-running")
        wait_until(
            lambda: machine.run(*asking, check=False).stdout.strip() in ("running", "degraded"),
            "systemd is up",
            60.0,
        )
        yield machine
    finally:
        process.kill()
        process.wait(10)
        wait_until(lambda: _removed(group), "its control groups are empty")


def _control_groups() -> Path | None:
    """Where control groups of version 2 are mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    return None


def _removed(group: Path) -> bool:
    """Remove a control group that has no process any more, with those below it."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True
