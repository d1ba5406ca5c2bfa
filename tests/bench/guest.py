"""Measures beside LVS where this kernel has no IPVS: in User-Mode Linux, a kernel that is a process.

python tests/bench/guest.py FOLDER writes lvs.json there.

The guest has one core and sees this machine's files; what it writes ends with it, but for its measurements.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from loaded_mp.lab.interrupt import interrupt_on_signals

_KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")
_MEMORY = "6G"
_TIMEOUT_S = 3600
#: The first process of the guest. Its nf_tables has no IPv4 and no IPv6, so iptables is the legacy one there.
_INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME={home}
if [ "$1" != overlaid ]; then
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/new /mnt/work /mnt/root
    insmod {modules}/*/kernel/fs/overlayfs/overlay.ko
    mount -t overlay -o lowerdir=/,upperdir=/mnt/new,workdir=/mnt/work overlay /mnt/root
    mount -t hostfs -o {folder} none /mnt/root{folder}
    exec chroot /mnt/root "$0" overlaid
fi
for kind in proc sysfs devtmpfs tmpfs; do
    case $kind in proc) at=/proc;; sysfs) at=/sys;; devtmpfs) at=/dev;; tmpfs) at=/run;; esac
    mount -t $kind $kind $at
done
mkdir -p /dev/shm /usr/lib/modules
mount -t tmpfs tmpfs /dev/shm
ln -s {modules}/* /usr/lib/modules/
for tool in ip{{,6}}tables{{,-save,-restore}}; do ln -sf xtables-legacy-multi /usr/sbin/$tool; done
modprobe ipv6
ip link set lo up
ulimit -n 65536
{command} 2>&1 </dev/null | cat
echo o >/proc/sysrq-trigger
sleep 9
"""


def has_guest() -> bool:
    """Whether a guest can be had: root has the kernel of one."""
    return bool(shutil.which(_KERNEL)) and _MODULES.exists() and os.geteuid() == 0


def in_guest(script: Path, *arguments: str, result: str) -> str:
    """What a Python script wrote into the file `result` in the folder that is its last word.

    Raises RuntimeError if it wrote nothing.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loaded-mp-guest-")))
        init = folder / "init"
        init.write_text(
            _INIT.format(
                home=Path.home(),
                modules=_MODULES,
                folder=folder,
                command=shlex.join([sys.executable, str(script), *arguments, str(folder)]),
            )
        )
        init.chmod(0o755)
        # One core: control goes to and fro between two of its threads at each system call.
        core = str(max(os.sched_getaffinity(0)))
        words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "taskset", "-c", core, _KERNEL]
        words += [f"mem={_MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        words += [f"init={init}", f"uml_dir={folder}/", "con=null", "con0=null,fd:1"]
        words += ["quiet", "loglevel=1", "panic=-1"]
        guest = subprocess.Popen(words, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": "/dev/shm"})
        stack.callback(guest.wait)
        stack.callback(guest.kill)
        guest.wait(_TIMEOUT_S)
        if not (folder / result).exists():
            raise RuntimeError("the guest ended without a result: its last lines above say why")
        return (folder / result).read_text()


def require_guest() -> None:
    """End the program if there can be no guest."""
    if not has_guest():
        raise click.ClickException(f"there is no {_KERNEL}: install user-mode-linux, and be root")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Default: 5.")
def main(folder: Path, rounds: int) -> None:
    """Measure beside LVS in a guest and write FOLDER/lvs.json."""
    require_guest()
    interrupt_on_signals()
    script = Path(__file__).with_name("main.py")
    words = ("--quick", "--rounds", str(rounds), "--out")
    (folder / "lvs.json").write_text(in_guest(script, *words, result="bench.json"))


if __name__ == "__main__":
    main()
