"""bpf(2), of it what a program at TC over shared memory needs. Structures: include/uapi/linux/bpf.h.

Every function raises OSError where the kernel refuses. Descriptors are the caller's to close, and are not
inherited by another program. What nobody has a descriptor of is gone: memory, programs and links.
"""

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum
from typing import NamedTuple

#: What the kernel shows of ours.
NAME = "loaded_mp"

#: The number of bpf(2) by machine (asm/unistd.h): glibc has no function for it.
_NUMBERS = {"x86_64": 321, "aarch64": 280}

_MAP_CREATE, _PROG_LOAD, _PROG_TEST_RUN, _OBJ_GET_INFO, _LINK_CREATE, _LINK_UPDATE = 0, 5, 10, 15, 28, 29
_LINK_DETACH = 34
_ARENA, _MMAPABLE = 33, 1 << 10
_SCHED_CLS = 3
_TCX = 11
_LICENCE = b"Dual MIT/GPL"

#: Bytes of the verifier's log; of a longer one the kernel keeps the end.
_LOG_BYTES = 1 << 20
_LOG_LINES = 20
#: How often a program is loaded anew whose verification a signal broke off.
_TRIES = 5

#: Bytes of a struct __sk_buff, and by how much a program may make a frame longer.
_CONTEXT_BYTES, _ROOM = 192, 256

_LOAD_64, _MAP_BY_DESCRIPTOR = 0x18, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long]
_libc.syscall.restype = ctypes.c_long


class VerifierError(OSError):
    """The verifier refuses a program; the message has the end of its log."""


class Direction(IntEnum):
    """Which packets of an interface a program sees; the kernel's numbers."""

    INGRESS = 46  #: BPF_TCX_INGRESS
    EGRESS = 47  #: BPF_TCX_EGRESS


class Arena(NamedTuple):
    """Memory that programs and processes share."""

    pages: int
    address: int  #: at which every process maps it


class Program(NamedTuple):
    """A loaded program."""

    id: int
    name: str
    verified: int  #: instructions that the verifier went through


class Link(NamedTuple):
    """Where a program is attached."""

    id: int
    program: int  #: its id
    interface: int  #: index; 0: it is gone
    direction: Direction


class Trial(NamedTuple):
    """What a program did to a frame."""

    result: int
    frame: bytes
    context: bytes  #: struct __sk_buff
    duration_ns: int  #: mean of the repetitions


def create_arena(pages: int, address: int) -> int:
    """The descriptor of fresh memory that every process has to map at `address`."""
    return _bpf(
        _MAP_CREATE,
        struct.pack("=7I16s5IQ", _ARENA, 0, 0, pages, _MMAPABLE, 0, 0, NAME.encode(), 0, 0, 0, 0, 0, address),
    )


def arena_of(descriptor: int) -> Arena | None:
    """What a descriptor is of; None: no arena of ours."""
    if _kind(descriptor) != "bpf-map":
        return None
    kind, pages, name, address = struct.unpack_from("=I12xI4x16s40xQ", _info(descriptor, 88))
    return Arena(pages, address) if kind == _ARENA and _text(name) == NAME else None


def load_program(code: bytes, name: str) -> int:
    """The descriptor of a verified program for `attach`. Raises VerifierError, or OSError (EPERM and others).

    `name`: 15 characters are kept.
    """
    try:
        return _load(code, name)
    except OSError as refused:
        # Writing a log takes the verifier several times as long, so it is asked for one only now.
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(code, name, log)
        except OSError:
            lines = log.value.decode(errors="replace").splitlines()
        if not lines:
            raise
        raise VerifierError(refused.errno, "\n".join(lines[-_LOG_LINES:])) from None


def program_info(descriptor: int) -> Program:
    """What the kernel knows of a loaded program."""
    number, name, verified = struct.unpack_from("=4xI56x16s136xI", _info(descriptor, 232))
    return Program(number, _text(name), verified)


def attach(program: int, interface: int, direction: Direction) -> int:
    """The descriptor of a link: the program sees an interface's packets, behind those attached before.

    `interface` is an index.
    """
    return _bpf(_LINK_CREATE, struct.pack("=5I4xQ", program, interface, direction, 0, 0, 0))


def replace(link: int, program: int) -> None:
    """Put another program in the place of a link's, between two packets. ENOLINK: its interface is gone."""
    _bpf(_LINK_UPDATE, struct.pack("=4I", link, program, 0, 0))


def detach(link: int) -> None:
    """Let a link's program see no more packets, whoever else has its descriptor."""
    _bpf(_LINK_DETACH, struct.pack("=I", link))


def link_of(descriptor: int) -> Link | None:
    """Where the program of a link is attached; None: the descriptor is of something else."""
    if _kind(descriptor) not in ("bpf_link", "bpf-link"):
        return None
    kind, number, program, interface, direction = struct.unpack_from("=III4xII", _info(descriptor, 64))
    return Link(number, program, interface, Direction(direction)) if kind == _TCX else None


def try_out(
    program: int,
    frame: bytes,
    context: bytes = b"",
    repeat: int = 1,
    flags: int = 0,
) -> Trial:
    """Let a program see a frame, from its Ethernet header on, as if it had come.

    `context` is the beginning of a struct __sk_buff, the rest is 0; `flags` are BPF_F_TEST_*.
    """
    came, went = (
        ctypes.create_string_buffer(frame, len(frame)),
        ctypes.create_string_buffer(len(frame) + _ROOM),
    )
    before = ctypes.create_string_buffer(context.ljust(_CONTEXT_BYTES, b"\0"), _CONTEXT_BYTES)
    after = ctypes.create_string_buffer(_CONTEXT_BYTES)
    given = struct.pack(
        "=4I2Q4I2Q4I",
        *(program, 0, len(frame), len(went), ctypes.addressof(came), ctypes.addressof(went)),
        *(repeat, 0, _CONTEXT_BYTES, _CONTEXT_BYTES, ctypes.addressof(before), ctypes.addressof(after)),
        *(flags, 0, 0, 0),
    )
    answer = ctypes.create_string_buffer(given, len(given))
    _call(_PROG_TEST_RUN, answer)
    result, length, duration_ns = struct.unpack_from("=4xI4xI20xI", answer)
    return Trial(result, went.raw[:length], after.raw, duration_ns)


def instruction(operation: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction; `to` and `of` are registers (dst_reg, src_reg), `value` are 32 bits."""
    return struct.pack("=BBhI", operation, of << 4 | to, offset, value & 0xFFFF_FFFF)


def load_map(register: int, descriptor: int) -> bytes:
    """The two instructions that put a map into a register: by them a program says which arena it uses."""
    return instruction(_LOAD_64, register, _MAP_BY_DESCRIPTOR, 0, descriptor) + instruction(0)


def _load(code: bytes, name: str, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(_LICENCE)
    given = struct.pack(
        "=2I2Q2IQ2I16s2I",
        *(_SCHED_CLS, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)),
        *((0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))),
        *(0, 0, name.encode()[:15], 0, 0),
    )
    for _ in range(_TRIES - 1):
        try:
            return _bpf(_PROG_LOAD, given)
        except BlockingIOError:
            pass
    return _bpf(_PROG_LOAD, given)


def _kind(descriptor: int) -> str:
    """What the kernel calls the object of an anonymous descriptor."""
    return os.readlink(f"/proc/self/fd/{descriptor}").removeprefix("anon_inode:")


def _info(descriptor: int, size: int) -> bytes:
    """The first bytes of what the kernel knows of a map, program or link; zeros where it knows less."""
    info = ctypes.create_string_buffer(size)
    _bpf(_OBJ_GET_INFO, struct.pack("=2IQ", descriptor, size, ctypes.addressof(info)))
    return info.raw


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode()


def _bpf(command: int, given: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(given, len(given)))


def _call(command: int, given: ctypes.Array[ctypes.c_char]) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known for {platform.machine()}")
    result: int = _libc.syscall(number, command, ctypes.addressof(given), len(given))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
