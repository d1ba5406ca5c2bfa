"""Compare-and-swap and add on one element of an array that other processes share.

Interpreted (`NUMBA_DISABLE_JIT=1`) they are plain Python and hold for one process only.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from loaded_mp.compiled import compiled

Words = npt.NDArray[np.uint64]


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Pointer to arguments[0][arguments[1]], without a bounds check."""
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, arguments[0])
    return cgutils.get_item_pointer(
        context, builder, array_type, array, [arguments[1]], wraparound=False, boundscheck=False
    )


@intrinsic  # type: ignore[untyped-decorator]
def _cas(typing_context: Any, words: Any, index: Any, old: Any, new: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        result = builder.cmpxchg(pointer, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(words, types.intp, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _add(typing_context: Any, words: Any, index: Any, amount: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.uint64(words, types.intp, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _load(typing_context: Any, words: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        return builder.load_atomic(pointer, "seq_cst", 8, typ=ir.IntType(64))

    return types.uint64(words, types.intp), generate


def _plain_cas(words: Words, index: int, old: np.uint64, new: np.uint64) -> bool:
    if words[index] != old:
        return False
    words[index] = new
    return True


def _plain_add(words: Words, index: int, amount: np.uint64) -> np.uint64:
    before: np.uint64 = words[index]
    words[index] = before + amount
    return before


def _plain_load(words: Words, index: int) -> np.uint64:
    word: np.uint64 = words[index]
    return word


if numba.config.DISABLE_JIT:
    cas, add, load = _plain_cas, _plain_add, _plain_load
else:

    @compiled
    def cas(words: Words, index: int, old: np.uint64, new: np.uint64) -> bool:
        """Make words[index] `new` if it is `old`; says whether it did. Sequentially consistent."""
        swapped: bool = _cas(words, index, old, new)
        return swapped

    @compiled
    def add(words: Words, index: int, amount: np.uint64) -> np.uint64:
        """Add `amount` to words[index], wrapping at 2^64, and return what was there before."""
        before: np.uint64 = _add(words, index, amount)
        return before

    @compiled
    def load(words: Words, index: int) -> np.uint64:
        """Read words[index] as other processes left it, in order with the other atomics."""
        word: np.uint64 = _load(words, index)
        return word
