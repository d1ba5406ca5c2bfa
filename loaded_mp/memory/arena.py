"""Memory that the kernel's programs share too: a BPF arena, which every process maps at one address.

So a program is the same for all processes. A program sees the pages that a process has touched (`populate`);
elsewhere it reads zeros, and what it writes is lost.
"""

import ctypes
import errno
import mmap
import os
import weakref
from functools import cache
from typing import Any

import numpy.typing as npt

from loaded_mp.bpf import Arena, create_arena

#: Far from where the kernel puts what may lie anywhere. Its lower 32 bits are a program's first address.
ADDRESS = 0x1000_0000_0000
#: What a program's 32 bits reach.
MOST_BYTES = 4 << 30

# include/uapi/asm-generic/mman-common.h
_MAP_FIXED_NOREPLACE = 0x10_0000
_MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

#: What this process has mapped, by address: a descriptor of its own, and bytes.
_mapped: dict[int, tuple[int, int]] = {}


def why_no_arenas() -> str:
    """Why the kernel gives this process no such memory; empty: it does."""
    try:
        os.close(create_arena(1, ADDRESS))
    except OSError as error:
        return refusal(error)
    return ""


def refusal(error: OSError) -> str:
    """Why there is no arena, for people."""
    needs = {errno.EPERM: "it takes CAP_BPF", errno.EINVAL: "it takes Linux 6.12"}
    return f"the kernel gives programs no memory: {needs.get(error.errno or 0, error.strerror)}"


def new_arena(size: int) -> int:
    """The descriptor of fresh memory of so many bytes.

    Raises OSError: EFBIG if that is more than MOST_BYTES, EPERM or EINVAL if the kernel gives none.
    """
    if size > MOST_BYTES:
        raise OSError(
            errno.EFBIG,
            f"memory shared with the kernel is {MOST_BYTES >> 30} GiB at most, not {size / (1 << 30):.1f}",
        )
    return create_arena(pages_of(size), ADDRESS)


def map_arena(descriptor: int, arena: Arena) -> "ctypes.Array[ctypes.c_char]":
    """The memory of an arena, in this process and in children forked from it, as long as anyone refers to it.

    Raises OSError: EEXIST if something else lies there.
    """
    address, size = arena.address, arena.pages * mmap.PAGESIZE
    own = os.dup(descriptor)
    try:
        _map(address, own, size)
    except OSError:
        os.close(own)
        raise
    _follow_forks()
    _mapped[address] = own, size
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _unmap, address).atexit = False
    return memory


def populate(*arrays: npt.NDArray[Any]) -> None:
    """Let programs see all of these arrays, each of them without gaps. Raises OSError (ENOMEM)."""
    for array in arrays:
        assert array.flags.c_contiguous
        start = array.ctypes.data & -mmap.PAGESIZE
        size = array.ctypes.data + array.nbytes - start
        if _libc.madvise(start, size, _MADV_POPULATE_WRITE):
            raise OSError(ctypes.get_errno(), "the memory cannot be had at once")


def pages_of(size: int) -> int:
    """Whole pages that hold so many bytes."""
    return -(-size // mmap.PAGESIZE)


def _map(address: int, descriptor: int, size: int) -> None:
    flags = mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE
    if _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), f"the shared memory cannot lie at {address:#x}")


@cache
def _follow_forks() -> None:
    """From now on; not before: what a signal raises in a process that was just forked is lost there."""
    os.register_at_fork(after_in_child=_map_again)


def _map_again() -> None:
    """The kernel does not copy an arena's mapping into a child."""
    for address, (descriptor, size) in _mapped.items():
        _map(address, descriptor, size)


def _unmap(address: int) -> None:
    descriptor, size = _mapped.pop(address)
    _libc.munmap(address, size)
    os.close(descriptor)
