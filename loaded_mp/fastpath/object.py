"""Reading programs out of an object file (ELF-64: elf(5); Documentation/bpf/llvm_reloc.rst)."""

import struct
from typing import NamedTuple

from loaded_mp.bpf import load_map

_REL = 9
_ADDRESS = 1  #: R_BPF_64_64
_LOAD_64 = 0x18


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
    # By its first instruction the verifier learns which arena the program uses; the register is free there.
    return load_map(2, arena) + bytes(code)


def _sections(file: bytes) -> tuple[list[_Section], list[str]]:
    """All sections and their names."""
    (table,) = struct.unpack_from("<Q", file, 40)
    size, count, names_at = struct.unpack_from("<HHH", file, 58)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", file, table + i * size)) for i in range(count)]
    names = _content(file, sections[names_at])
    return sections, [names[each.name : names.index(b"\0", each.name)].decode() for each in sections]


def _content(file: bytes, section: _Section) -> bytes:
    return file[section.offset : section.offset + section.size]
