"""From numba's functions to programs for the kernel, in a process of its own.

python -m loaded_mp.fastpath.compiler FILE writes the object file of all programs. numba's own passes would
choose instructions of this machine, so they are switched off, and LLVM's run for the kernel's machine: first
a clean-up that folds what numba left, then the usual ones, whose rewriting of conditions the verifier follows
less well.
"""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from loaded_mp.compiled import FOR_KERNEL

#: Functions of these modules, each a section of the object file.
PROGRAMS = {"ingress": "program", "egress": "program", "redirect": "redirect"}
#: What a program answers where numba's code would raise: the packet goes on (TCX_NEXT).
_FAILED = -1

_LAYOUT = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"
_CPU = "v4"
_OPTIMISE = 2
_CLEAN_UPS = 3

_MEMORY = """
@segment = external addrspace(1) global [1 x i8]
define ptr @memory() alwaysinline {
  %base = addrspacecast ptr addrspace(1) @segment to ptr
  ret ptr %base
}
"""


def compile_programs() -> bytes:
    """The object file (ELF) of all programs. Only in a process with FOR_KERNEL in its environment."""
    import llvmlite.binding as llvm  # noqa: PLC0415 (slow, and of this process alone)
    from numba import types  # noqa: PLC0415

    llvm.add_symbol("memory", 1)  # numba looks for it, nobody calls it
    texts, entries = [], []
    for name, module in PROGRAMS.items():
        function = getattr(importlib.import_module(f"loaded_mp.fastpath.{module}"), name)
        function.compile((types.int64,))
        text = function.inspect_llvm((types.int64,))
        entries.append(_entry(name, function.overloads[(types.int64,)].fndesc.llvm_func_name))
        texts.append(text)
    return _object_of(texts, entries)


def _entry(name: str, callee: str) -> str:
    """What the kernel calls: a program as a function of its context."""
    return f"""
define i32 @{name}(ptr %context) "no-jump-tables"="true" section "tc.{name}" {{
  %result = alloca i64
  %exception = alloca ptr
  %address = ptrtoint ptr %context to i64
  %status = call i32 @"{callee}"(ptr %result, ptr %exception, i64 %address)
  %failed = icmp ne i32 %status, 0
  %value = load i64, ptr %result
  %small = trunc i64 %value to i32
  %answer = select i1 %failed, i32 {_FAILED}, i32 %small
  ret i32 %answer
}}
"""


def _object_of(texts: list[str], entries: list[str]) -> bytes:
    import llvmlite.binding as llvm  # noqa: PLC0415

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.set_option("", "-disable-lsr")  # it makes pointers that the verifier does not know as such
    llvm.set_option("", "-disable-ldsx")  # Linux 6.12 has no loads from an arena that extend the sign
    module = None
    for text, entry in zip(texts, entries, strict=True):
        part = llvm.parse_assembly(_for_kernel(text) + entry)
        part.verify()
        for each in part.functions:
            if not each.is_declaration and each.name not in PROGRAMS:
                each.linkage = "internal"
                each.add_function_attribute("alwaysinline")
        for value in part.global_variables:
            if not value.is_declaration:
                value.linkage = "internal"
        if module is None:
            module = part
        else:
            module.link_in(part)
    assert module
    target = llvm.Target.from_triple("bpfel").create_target_machine(cpu=_CPU, opt=_OPTIMISE)
    options = llvm.create_pipeline_tuning_options(_OPTIMISE)
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(target, options)
    _clean_up(llvm).run(module, builder)
    builder.getModulePassManager().run(module, builder)
    found: bytes = target.emit_object(module)
    return found


def _for_kernel(text: str) -> str:
    """The same code for the kernel's machine, which has no sequentially consistent loads."""
    text = re.sub(r"declare ptr @memory\(\).*", "", text) + _MEMORY
    text = re.sub(r'target triple = ".*"', 'target triple = "bpfel"', text)
    text = re.sub(r'target datalayout = ".*"', f'target datalayout = "{_LAYOUT}"', text)
    return re.sub(r"load atomic (.*) seq_cst,", r"load volatile \1,", text)


def _clean_up(llvm: Any) -> Any:
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    for _ in range(_CLEAN_UPS):
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_new_gvn_pass()
        passes.add_sccp_pass()
        passes.add_jump_threading_pass()
        passes.add_dead_store_elimination_pass()
        passes.add_aggressive_dce_pass()
        passes.add_simplify_cfg_pass()
    passes.add_global_dead_code_eliminate_pass()
    return passes


if __name__ == "__main__":
    assert FOR_KERNEL in os.environ
    Path(sys.argv[1]).write_bytes(compile_programs())
