"""Runs tests under another kernel: `python tests/kernels/guest.py DEB... [WORDS FOR PYTEST]...`

DEB is a Debian or Ubuntu package of a kernel, linux-image-*.deb; where that is divided into several, all that
have a part of it: linux-base-*, linux-binary-* and linux-modules-*.deb of the same version. An emulated
machine boots it and sees this machine's files; what it writes ends with it. It is ten times slower, so that
not every deadline of tests that send packets holds.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from loaded_mp.lab.interrupt import interrupt_on_signals

_TESTS = ("tests/netns/test_programs.py",)
_PROJECT = Path(__file__).parents[2]
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_PACKED = {".xz": "xz", ".zst": "zstd"}
_FOLDERS = ("bin", "sbin", "proc", "sys", "dev", "modules", "lower", "upper", "root")
_ENDED = "the tests ended with status "
_TIMEOUT_S = 3600
_MACHINE = "qemu-system-x86_64 -accel tcg,thread=multi -cpu Haswell-noTSX -smp 2 -m 8G -nographic -no-reboot"
_SHARED = "security_model=none,readonly=on,multidevs=remap"
#: Machine code that the emulated processor has too.
_PROCESSOR = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}

#: The first process.
_INIT = """#!/bin/busybox sh
export PATH={path}:/bin
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in {modules}; do insmod /modules/$module; done
mount -t 9p -o {options} machine /lower
mount -t tmpfs -o size=4g tmpfs /upper
mkdir /upper/new /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work overlay /root
for folder in proc sys dev; do mount -o bind /$folder /root/$folder; done
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mkdir -p /root/dev/shm /root/lib/modules
for folder in dev/shm run lib/modules; do mount -t tmpfs -o size=2g tmpfs /root/$folder; done
mkdir /root/run/kernel
mount -t 9p -o {options} kernel /root/run/kernel
ln -s /run/kernel/{folder} /root/lib/modules/
ip link set lo up
chroot /root /bin/sh -c {command}
echo "{ended}$?"
poweroff -f
"""
_OPTIONS = "trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose"
#: The kernel looks for it outside of the root that tests see.
_MODPROBE = """#!/bin/busybox sh
exec /bin/busybox chroot /root /sbin/modprobe "$@"
"""


def run_under(packages: list[str], words: list[str]) -> int:
    """The status of a command, in the project's folder, under the kernel of packages; 1: it did not boot."""
    with tempfile.TemporaryDirectory(prefix="loaded-mp-guest-") as made:
        kernel, first = Path(made, "kernel"), Path(made, "first")
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", package, kernel], check=True)
        image, modules = _found(kernel, "**/vmlinuz*"), _found(kernel, "**/lib/modules/*")
        subprocess.run(["depmod", "--basedir", modules.parents[2], modules.name], check=True)
        command = ["env", *(f"{name}={value}" for name, value in _PROCESSOR.items()), *words]
        for folder in _FOLDERS:
            (first / folder).mkdir(parents=True)
        (first / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (first / "sbin/modprobe").write_text(_MODPROBE)
        (first / "init").write_text(
            _INIT.format(
                path=os.environ["PATH"],
                modules=" ".join(_copied(modules, first / "modules")),
                options=_OPTIONS,
                folder=modules.relative_to(kernel),
                command=shlex.quote(f"cd {shlex.quote(str(_PROJECT))} && {shlex.join(command)}"),
                ended=_ENDED,
            )
        )
        for program in ("bin/busybox", "sbin/modprobe", "init"):
            (first / program).chmod(0o755)
        names = "\n".join(str(each.relative_to(first)) for each in first.glob("**/*"))
        archive = ["busybox", "cpio", "-o", "-H", "newc"]
        packed = subprocess.run(archive, cwd=first, input=names.encode(), capture_output=True, check=True)
        Path(made, "initrd").write_bytes(packed.stdout)
        return _boot(image, Path(made, "initrd"), {"machine": Path("/"), "kernel": kernel})


def _found(kernel: Path, pattern: str) -> Path:
    """The only path of that kind in what packages have brought."""
    found = list(kernel.glob(pattern))
    if len(found) != 1:
        raise click.ClickException(f"found {len(found)} of {pattern} in these packages, expected one")
    return found[0]


def _copied(modules: Path, folder: Path) -> list[str]:
    """The names of files in `folder`, in the order in which the kernel takes them."""
    asked = ["modprobe", "--dirname", str(modules.parents[2]), "--set-version", modules.name, "--all"]
    done = subprocess.run([*asked, "--show-depends", *_MODULES], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{done.stderr.strip()}; does a package lack, such as linux-base-*.deb?")
    copied = []
    for file in (Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("insmod")):
        packer = _PACKED.get(file.suffix)
        name = file.stem if packer else file.name
        if name not in copied:
            unpack = [packer, "--decompress", "--stdout"] if packer else ["cat"]
            content = subprocess.run([*unpack, str(file)], capture_output=True, check=True).stdout
            (folder / name).write_bytes(content)
            copied.append(name)
    return copied


def _boot(image: Path, archive: Path, shared: dict[str, Path]) -> int:
    words = ["timeout", str(_TIMEOUT_S), *_MACHINE.split(), "-nic", "none", "-device", "virtio-rng-pci"]
    words += ["-kernel", str(image), "-initrd", str(archive), "-append", "console=ttyS0 panic=-1 quiet"]
    for tag, path in shared.items():
        words += ["-virtfs", f"local,path={path},mount_tag={tag},{_SHARED}"]
    status = 1
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as guest:
        try:
            assert guest.stdout
            for line in (each.decode(errors="replace") for each in guest.stdout):
                print(line, end="", flush=True)
                if line.startswith(_ENDED):
                    status = int(line.removeprefix(_ENDED))
        finally:
            guest.terminate()
    return status


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(words: tuple[str, ...]) -> None:
    """Run pytest with WORDS under the kernel of those that end in .deb; by default the tests of the kernel's
    programs."""
    interrupt_on_signals()
    packages = [word for word in words if word.endswith(".deb")]
    if not packages:
        raise click.UsageError("say the packages of a kernel: make test-kernel DEB='linux-image-....deb ...'")
    if absent := [package for package in packages if not Path(package).is_file()]:
        raise click.UsageError(f"there is no file {absent[0]}")
    warm_up = [str(Path(sys.executable).with_name("loaded-mp")), "warm-up"]
    subprocess.run(warm_up, env={**os.environ, **_PROCESSOR}, check=True)
    tests = [word for word in words if word not in packages] or _TESTS
    sys.exit(run_under(packages, [sys.executable, "-m", "pytest", "-rs", *tests]))


if __name__ == "__main__":
    main()
