"""Reading programs out of an object file (ELF-64: elf(5); Documentation/bpf/llvm_reloc.rst)."""

import struct
from typing import NamedTuple

from loaded_mp.bpf import instruction, load_map
from loaded_mp.compiled import MARKER

_REL = 9
_ADDRESS = 1  #: R_BPF_64_64
_LOAD_64 = 0x18
# RFC 9669, 4.1 and 4.3; include/uapi/linux/bpf.h, BPF_JCOND with BPF_MAY_GOTO.
_MOVES, _EQUAL, _NOT_EQUAL, _GOTO, _MAY_GOTO = (0xB4, 0xB7), 0x15, 0x55, 0x05, 0xE5
_JUMPS = (5, 6)  #: classes of instructions


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry: int


def code_of(file: bytes, program: str, arena: int, address: int) -> bytes:
    """The instructions of a program for an arena that processes map at `address`.

    A program's pointers into an arena are the lower halves of those of processes. Raises ValueError where the
    file has no such program, or one that refers to anything else.
    """
    sections, names = _sections(file)
    if f"tc.{program}" not in names:
        raise ValueError(f"the object file has no program {program!r}")
    number = names.index(f"tc.{program}")
    code = bytearray(_content(file, sections[number]))
    for each in sections:
        if each.kind != _REL or each.info != number:
            continue
        for at, kind in struct.iter_unpack("<QQ", _content(file, each)):
            if kind & 0xFFFFFFFF != _ADDRESS or code[at] != _LOAD_64:
                raise ValueError(f"{program!r} refers to something that is not the shared memory")
            (more,) = struct.unpack_from("<I", code, at + 4)
            struct.pack_into("<I", code, at + 4, (address + more) & 0xFFFFFFFF)
            struct.pack_into("<I", code, at + 12, 0)
    _let_loops_end(code)
    # By its first instruction the verifier learns which arena the program uses; the register is free there.
    return load_map(2, arena) + bytes(code)


def _let_loops_end(code: bytearray) -> None:
    """Put may_goto in the place of each comparison of MARKER with 0, which stands for an end.

    The comparison may come some instructions after the one that gives a register the marker: these move up,
    to have two together. Raises ValueError where something else is compared, or one of these is jumped to.
    """
    targets = _targets(code)
    for at in range(0, len(code), 8):
        operation, registers, _, value = struct.unpack_from("<BBhI", code, at)
        if operation not in _MOVES or value != MARKER:
            continue
        jump = at + 8
        while code[jump] & 7 not in _JUMPS:
            jump += 8
        comparison, compared, offset, value = struct.unpack_from("<BBhI", code, jump)
        asks = (compared, value) == (registers, 0) and comparison in (_EQUAL, _NOT_EQUAL)
        if not asks or not targets.isdisjoint(range(at + 8, jump + 8, 8)):
            raise ValueError(f"instruction {jump // 8} should ask whether a loop goes on")
        ends_there = comparison == _EQUAL
        code[at : jump - 8] = code[at + 8 : jump]
        code[jump - 8 : jump + 8] = (
            instruction(_GOTO) + instruction(_MAY_GOTO, offset=offset)
            if ends_there
            else instruction(_MAY_GOTO, offset=1) + instruction(_GOTO, offset=offset)
        )


def _targets(code: bytearray) -> set[int]:
    """Where jumps go to."""
    return {
        at + 8 + 8 * int.from_bytes(code[at + 2 : at + 4], "little", signed=True)
        for at in range(0, len(code), 8)
        if code[at] & 7 in _JUMPS
    }


def _sections(file: bytes) -> tuple[list[_Section], list[str]]:
    """All sections and their names."""
    (table,) = struct.unpack_from("<Q", file, 40)
    size, count, names_at = struct.unpack_from("<HHH", file, 58)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", file, table + i * size)) for i in range(count)]
    names = _content(file, sections[names_at])
    return sections, [names[each.name : names.index(b"\0", each.name)].decode() for each in sections]


def _content(file: bytes, section: _Section) -> bytes:
    return file[section.offset : section.offset + section.size]
