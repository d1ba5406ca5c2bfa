"""What a program for the kernel may use, callable from its compiled functions: the shared memory, the packet,
helpers. Only the process that compiles for the kernel imports this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

#: The function that gives the address of the shared memory (`fastpath/compiler.py` defines it).
MEMORY = "memory"

_BYTE, _WORD, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def shared(at: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Callable[[int], npt.NDArray[Any]]:
    """A function that gives the array at `at`, and so many bytes more, of the shared memory."""
    array_type = types.Array(numba.from_dtype(np.dtype(dtype)), len(shape), "C")

    @intrinsic  # type: ignore[untyped-decorator]
    def get(typing_context: Any, more: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            more = context.cast(builder, arguments[0], signature.args[0], types.int64)
            data = builder.gep(_memory(builder), [builder.add(ir.Constant(_LONG, at), more)])
            lengths = [ir.Constant(_LONG, length) for length in shape]
            return _array(context, builder, array_type, data, lengths)

        return array_type(more), generate

    given: Callable[[int], npt.NDArray[Any]] = get
    return given


def shared_row(dtype: npt.DTypeLike) -> Callable[[int, int], npt.NDArray[Any]]:
    """A function that gives the array of one axis at an offset of the shared memory, of a length."""
    array_type = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")

    @intrinsic  # type: ignore[untyped-decorator]
    def get(typing_context: Any, offset: Any, length: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at, lengths = (
                context.cast(builder, argument, kind, types.int64)
                for argument, kind in zip(arguments, signature.args, strict=True)
            )
            return _array(context, builder, array_type, builder.gep(_memory(builder), [at]), [lengths])

        return array_type(offset, length), generate

    given: Callable[[int, int], npt.NDArray[Any]] = get
    return given


def scratch(dtype: npt.DTypeLike, length: int) -> Callable[[], npt.NDArray[Any]]:
    """A function that gives an array of `length` zeros, of whole 8 bytes, on the program's stack."""
    kind = np.dtype(dtype)
    array_type = types.Array(numba.from_dtype(kind), 1, "C")
    count = length * kind.itemsize // 8
    words = ir.ArrayType(_LONG, count)

    @intrinsic  # type: ignore[untyped-decorator]
    def get(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(words)
            builder.store(ir.Constant(words, [0] * count), memory)
            return _array(context, builder, array_type, memory, [ir.Constant(_LONG, length)])

        return array_type(), generate

    given: Callable[[], npt.NDArray[Any]] = get
    return given


def helper(number: int, count: int) -> Callable[..., int]:
    """A function that calls a helper of the kernel (include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER) with
    `count` arguments: numbers, or arrays, of which their address is passed.
    """

    def typed(typing_context: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            passed = []
            for kind, value in zip(kinds, arguments, strict=True):
                if isinstance(kind, types.Array):
                    pointer = context.make_array(kind)(context, builder, value).data
                    passed.append(builder.bitcast(pointer, _BYTE.as_pointer()))
                else:
                    passed.append(context.cast(builder, value, kind, types.int64))
            function = ir.FunctionType(_LONG, [value.type for value in passed])
            return builder.call(builder.inttoptr(ir.Constant(_LONG, number), function.as_pointer()), passed)

        return types.int64(*kinds), generate

    # numba asks an intrinsic for the names of its arguments: *kinds will not do.
    by_count: Sequence[Callable[..., Any]] = (
        lambda context: typed(context),  # noqa: PLW0108
        lambda context, a: typed(context, a),  # noqa: PLW0108
        lambda context, a, b: typed(context, a, b),  # noqa: PLW0108
        lambda context, a, b, c: typed(context, a, b, c),  # noqa: PLW0108
        lambda context, a, b, c, d: typed(context, a, b, c, d),  # noqa: PLW0108
        lambda context, a, b, c, d, e: typed(context, a, b, c, d, e),  # noqa: PLW0108
    )
    given: Callable[..., int] = intrinsic(by_count[count])
    return given


@intrinsic  # type: ignore[untyped-decorator]
def context_word(typing_context: Any, skb: Any, offset: Any) -> Any:
    """The 32-bit word at a constant offset of the program's context, struct __sk_buff."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.load(_context_word_at(builder, arguments), typ=_WORD, align=4)
        return builder.zext(word, _LONG)

    return types.int64(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def set_context_word(typing_context: Any, skb: Any, offset: Any, value: Any) -> Any:
    """Write the 32-bit word at a constant offset of the program's context."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(builder.trunc(arguments[2], _WORD), _context_word_at(builder, arguments), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def opaque(typing_context: Any, array: Any) -> Any:
    """The same array, of which the compiler no longer knows where it lies.

    Else it adds to an aligned address by `or`, which the verifier takes for a loss of the pointer.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        box = context.make_array(array)(context, builder, arguments[0])
        kind = box.data.type
        box.data = builder.asm(ir.FunctionType(kind, [kind]), "", "=r,0", [box.data], side_effect=False)
        return box._getvalue()

    return array(array), generate


def _memory(builder: Any) -> Any:
    function = ir.FunctionType(_BYTE.as_pointer(), [])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, MEMORY), [])


def _array(context: Any, builder: Any, array_type: Any, data: Any, lengths: Sequence[Any]) -> Any:
    """An array of contiguous items of these lengths at `data`."""
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    strides = [ir.Constant(_LONG, size)]
    for length in reversed(lengths[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    array = make_array(array_type)(context, builder)
    populate_array(
        array,
        data=builder.bitcast(data, array.data.type),
        shape=lengths,
        strides=strides,
        itemsize=ir.Constant(_LONG, size),
        meminfo=None,
    )
    return array._getvalue()


def _context_word_at(builder: Any, arguments: Sequence[Any]) -> Any:
    pointer = builder.inttoptr(arguments[0], _BYTE.as_pointer())
    return builder.bitcast(builder.gep(pointer, [arguments[1]]), _WORD.as_pointer())
