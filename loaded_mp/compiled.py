"""How the functions of the packet path become machine code."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Function = TypeVar("Function", bound=Callable[..., Any])

#: Raw packet bytes, in network byte order.
Bytes = npt.NDArray[np.uint8]


def compiled(function: Function) -> Function:
    """Compile `function` with numba at its first call and keep the machine code on disk.

    With `NUMBA_DISABLE_JIT=1` in the environment the function stays plain Python.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
