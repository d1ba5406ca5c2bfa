"""How the functions of the packet path become machine code."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import event as numba_event

Function = TypeVar("Function", bound=Callable[..., Any])

#: Raw packet bytes, in network byte order.
Bytes = npt.NDArray[np.uint8]

#: The packages that hold compiled functions and all that these refer to.
PACKAGES = ("packet", "flows", "schedulers", "memory", "datapath", "fastpath")

#: Set in the process that compiles for the kernel (`fastpath/compiler.py`).
FOR_KERNEL = "LOADED_MP_FOR_KERNEL"
_FOR_KERNEL = FOR_KERNEL in os.environ
#: What the kernel's programs compare with 0 where `goes_on` is asked, until they get the instruction for it.
MARKER = 0x6D61_795F

#: A file beside the machine code, once all of it is there.
_COMPLETE = "complete"


def compiled(function: Function) -> Function:
    """Compile `function` with numba at its first call and keep the machine code on disk.

    Compiled functions allocate nothing, so numba need not count references to arrays: that costs more than
    the rest of a packet's way. They are put into their callers: a tuple of many arrays, handed from call to
    call, costs ten times what is done with it.
    With `NUMBA_DISABLE_JIT=1` in the environment the function stays plain Python. Raises ImportError where
    a change of the function's file would leave old machine code in use.
    """
    package, _, module = function.__module__.partition(".")
    if package == __package__ and module.split(".")[0] not in (*PACKAGES, "compiled"):
        raise ImportError(f"{function.__module__} holds a compiled function: name its package in PACKAGES")
    decorator = numba.njit(
        cache=bool(numba.config.CACHE_DIR) and not _FOR_KERNEL,
        nogil=True,
        error_model="numpy",
        forceinline=True,
        _nrt=False,
        no_cpython_wrapper=_FOR_KERNEL,
        no_cfunc_wrapper=True,
    )
    return cast(Function, decorator(function))


def _goes_on() -> bool:
    """Whether a loop whose end is not known beforehand goes on: it does.

    The kernel's verifier has to see that each loop of its programs ends. One that may end in any round
    (BPF_MAY_GOTO, include/uapi/linux/bpf.h) it follows through a few, and the kernel ends it after millions.
    """
    return True


def _goes_on_there() -> Any:
    """The same for the kernel: a comparison of which LLVM does not know how it ends."""
    from llvmlite import ir  # noqa: PLC0415 (of the process that compiles for the kernel alone)
    from numba.core import types  # noqa: PLC0415
    from numba.extending import intrinsic  # noqa: PLC0415

    def typed(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(64)
            kind = ir.FunctionType(word, [word])
            marker = builder.asm(kind, "", "=r,0", [ir.Constant(word, MARKER)], side_effect=True)
            return builder.icmp_unsigned("!=", marker, ir.Constant(word, 0))

        return types.boolean(), generate

    return intrinsic(typed)


goes_on: Callable[[], bool] = _goes_on_there() if _FOR_KERNEL else compiled(_goes_on)


def has_machine_code() -> bool:
    """Whether an earlier process left all machine code on disk, so that a start need not compile."""
    folder = numba.config.CACHE_DIR
    return bool(numba.config.DISABLE_JIT or (folder and (Path(folder) / _COMPLETE).exists()))


def note_machine_code() -> None:
    """Note that all of it is there."""
    if folder := numba.config.CACHE_DIR:
        (Path(folder) / _COMPLETE).touch()


def tell_of_late_compilation(say: Callable[[str], None]) -> None:
    """From now on, in this process and those that it forks, `say` the name of each function that is compiled.

    To be called when all machine code is there: whatever comes later holds up packets or the supervisor.
    """

    class Listener(numba_event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            say(str(event.data["dispatcher"].py_func.__qualname__))

        def on_end(self, event: Any) -> None:
            pass

    numba_event.register("numba:compile", Listener())


def _cache_folder() -> Path | None:
    """Where the machine code is kept: in the package, the cache of a systemd unit (systemd.exec(5)) or the
    user's; None if none can be written.

    The name depends on all of the source: numba itself only notices a change in the file of the function,
    not in the functions that it calls.
    """
    package = Path(__file__).parent
    source = hashlib.sha256(Path(__file__).read_bytes())
    for name in PACKAGES:
        for file in sorted((package / name).glob("*.py")):
            source.update(file.read_bytes())
    name = f"compiled-{source.hexdigest()[:16]}"
    unit = os.environ.get("CACHE_DIRECTORY", "")
    folders = [package / "__pycache__", *([Path(unit)] if unit else []), Path.home() / ".cache" / "loaded-mp"]
    for folder in (each / name for each in folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(_cache_folder() or "")


@compiled
def signed(number: Any) -> int:
    """A number from an array of any integer type, as the int that all others are.

    numba makes a float of the sum of an int64 and a uint64.
    """
    return int(np.int64(number))
