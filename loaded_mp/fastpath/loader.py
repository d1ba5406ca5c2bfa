"""The fast path of a daemon: its programs, and the interfaces whose packets they see.

A link lasts as long as anybody has its descriptor: the supervisor, or one of the workers. So the fast path
goes on when either dies, and nothing is left of it when all are gone.
"""

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import numba

from loaded_mp.bpf import NAME, Direction, attach, detach, link_of, load_program, replace
from loaded_mp.compiled import FOR_KERNEL
from loaded_mp.fastpath.object import code_of
from loaded_mp.log import event
from loaded_mp.memory.shared import KernelSetting, SharedMemory

log = logging.getLogger(__name__)

#: Of packets that come in one of the first two sees all, as the mode says.
_DIRECTIONS = {"ingress": Direction.INGRESS, "redirect": Direction.INGRESS, "egress": Direction.EGRESS}
_FILE = "fastpath.o"
_COMPILE_S = 120.0
_SIOCGIFMTU, _SIOCGIFHWADDR = 0x8921, 0x8927
_ETHERNET = 1  # include/uapi/linux/if_arp.h
#: membarrier(2): number by machine, and MEMBARRIER_CMD_GLOBAL.
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_GLOBAL = 1
_LONGEST = 65_535


class FastPath:
    """Sees packets of `interfaces`; `why_not` says why not of others, or of none."""

    def __init__(
        self,
        wanted: Collection[str],
        why_not: str = "",
        links: Collection[int] = (),
        mode: str = "auto",
    ) -> None:
        """For interfaces of these names, the public one first; `links` are of an earlier daemon.

        `why_not`: they are not to be seen. `mode`: the setting `fast_path`.
        """
        self.mode = mode
        self._wanted = tuple(dict.fromkeys(wanted))
        self._names = ["redirect" if mode == "redirect" else "ingress", "egress"]
        self._programs: dict[str, int] = {}
        self._links: dict[tuple[str, str], int] = {}
        self._earlier = list(links)
        self.why_not = why_not

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Whose packets it sees."""
        return tuple(dict.fromkeys(name for name, _ in self._links))

    @property
    def links(self) -> tuple[int, ...]:
        """Descriptors, for those who go on when this process ends."""
        return tuple(self._links.values())

    def begin(self, memory: SharedMemory, descriptor: int) -> None:
        """Start although there was a reason not to, which is no more."""
        self.why_not = ""
        self.start(memory, descriptor)

    def start(self, memory: SharedMemory, descriptor: int) -> None:
        """Load the programs for an arena and attach them, as far as that can be; else `why_not` says why."""
        if not self.why_not:
            try:
                file = object_file()
                for name in self._names:
                    code = code_of(file, name, descriptor, memory.generation.ctypes.data & ~0xFFFFFFFF)
                    self._programs[name] = load_program(code, f"{NAME}_{name}")
                self.attach(memory)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                log.debug(event("fast-path-refused", cause=str(error)))
                self.why_not = f"the kernel refuses the programs: {_in_a_line(error)}"
        self._end_earlier()

    def attach(self, memory: SharedMemory) -> None:
        """See the packets of all wanted interfaces that are there; to be called again and again."""
        if not self._programs:
            return
        faults, mtus, indices = [], [_LONGEST], []
        for name in self._wanted:
            try:
                mtus.append(_mtu(name))
                indices.append(socket.if_nametoindex(name))
                for program in self._names:
                    self._attach(name, indices[-1], program)
            except OSError as error:
                faults.append(f"{name}: {error.strerror}")
                for (interface, program), link in list(self._links.items()):
                    if interface == name:
                        self._let_go(name, program, link)
        memory.kernel_settings[KernelSetting.LONGEST] = min(mtus)
        both = (0, 0) if faults else (indices[0], indices[-1])
        memory.kernel_settings[[KernelSetting.PUBLIC, KernelSetting.PRIVATE]] = both
        self.why_not = "; ".join(faults)

    def grace(self) -> None:
        """Wait until all programs that run now are done, an earlier daemon's too; none run: at once."""
        if self._links or self._earlier:
            grace()

    def stop_requests(self) -> None:
        """Let packets that come in go to workers; replies that are under way still get their VIPs."""
        for (name, program), link in list(self._links.items()):
            if _DIRECTIONS[program] is Direction.INGRESS:
                self._let_go(name, program, link)
        if self._links:
            grace()

    def stop(self) -> None:
        """See no packets any more."""
        self.stop_requests()
        for (name, program), link in list(self._links.items()):
            self._let_go(name, program, link)
        for descriptor in self._programs.values():
            os.close(descriptor)
        self._programs.clear()

    def _end_earlier(self) -> None:
        """Detach those of an earlier daemon that are not used any more, those of requests first."""
        mine = {_id(link) for link in self.links}  # workers have the same ones
        for direction in (Direction.INGRESS, Direction.EGRESS):
            for link in self._earlier:
                there = link_of(link)
                if there and there.direction == direction and there.id not in mine:
                    with contextlib.suppress(OSError):  # its interface is gone
                        detach(link)
            if self._earlier:
                grace()  # for replies that are under way
        for link in self._earlier:
            os.close(link)
        self._earlier = []

    def _attach(self, name: str, index: int, program: str) -> None:
        link = self._links.get((name, program))
        if link is not None:
            there = link_of(link)
            if there and there.interface == index:
                return
            os.close(self._links.pop((name, program)))
        if not _is_ethernet(name):
            raise OSError(errno.EINVAL, "its packets have no Ethernet header")
        direction, mine = _DIRECTIONS[program], {_id(each) for each in self.links}
        for earlier in self._earlier:
            there = link_of(earlier)
            if there and (there.interface, there.direction) == (index, direction) and there.id not in mine:
                replace(earlier, self._programs[program])
                self._earlier.remove(earlier)
                self._links[name, program] = earlier
                return
        self._links[name, program] = attach(self._programs[program], index, direction)

    def _let_go(self, name: str, program: str, link: int) -> None:
        with contextlib.suppress(OSError):  # its interface is gone
            detach(link)
        os.close(link)
        del self._links[name, program]


def object_file() -> bytes:
    """All programs, from the disk, or compiled. Raises OSError or subprocess.SubprocessError."""
    folder = numba.config.CACHE_DIR
    file = Path(folder) / _FILE if folder else None
    if file and file.exists():
        return file.read_bytes()
    log.info(event("compiling-fast-path", cause="first start of this version", takes="some seconds"))
    with tempfile.TemporaryDirectory(prefix="loaded-mp-") as made:
        path = Path(made) / _FILE
        environment = {
            **os.environ,
            FOR_KERNEL: "1",
            # LLVM's passes for this machine would choose instructions that the kernel's machine has not.
            "NUMBA_OPT": "0",
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_DISABLE_JIT": "0",
        }
        words = (sys.executable, "-m", "loaded_mp.fastpath.compiler", str(path))
        done = subprocess.run(
            words, env=environment, timeout=_COMPILE_S, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(
                errno.ENOEXEC, done.stderr.strip().splitlines()[-1] if done.stderr else "no compiler"
            )
        content = path.read_bytes()
    if file:
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(file)
    return content


def grace() -> None:
    """Wait until all programs that run now are done: milliseconds."""
    number = _MEMBARRIER.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _GLOBAL, 0, 0)


def _in_a_line(error: Exception) -> str:
    """What it says last; the verifier adds a count to that."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return [line for line in text.splitlines() if not line.startswith("processed ")][-1]


def _id(link: int) -> int | None:
    there = link_of(link)
    return there.id if there else None


def _mtu(name: str) -> int:
    (mtu,) = struct.unpack_from("=i", _asked(name, _SIOCGIFMTU), 16)
    return int(mtu)


def _is_ethernet(name: str) -> bool:
    (kind,) = struct.unpack_from("=H", _asked(name, _SIOCGIFHWADDR), 16)
    return bool(kind == _ETHERNET)


def _asked(name: str, question: int) -> bytes:
    """What the kernel says of an interface: struct ifreq (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, question, struct.pack("=16s24x", name.encode()))
