"""The system calls of the loop, callable from compiled code.

They are bound by name when the machine code is loaded, so that it can be kept on disk. Interpreted, the
same calls go through ctypes.
"""

import ctypes
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from loaded_mp.compiled import compiled

Longs = npt.NDArray[np.int64]

#: include/uapi/linux/time.h
_CLOCK_MONOTONIC = 1
#: include/linux/socket.h: block for the first message only.
_MSG_WAITFORONE = 0x10000
_MSG_DONTWAIT = 0x40
#: include/uapi/asm-generic/socket.h
_SOL_SOCKET, _SO_MEMINFO = 1, 55


@intrinsic  # type: ignore[untyped-decorator]
def _errno(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(ir.PointerType(ir.IntType(32)), [])
        location = cgutils.get_or_insert_function(builder.module, function_type, "__errno_location")
        return builder.sext(builder.load(builder.call(location, [])), ir.IntType(64))

    return types.int64(), generate


_recvmmsg: Any
_sendmsg: Any
_clock_gettime: Any
_getsockopt: Any
_sched_yield: Any

if numba.config.DISABLE_JIT:
    _libc = ctypes.CDLL(None, use_errno=True)
    _recvmmsg = _libc.recvmmsg
    _recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
    _sendmsg = _libc.sendmsg
    _sendmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    _sendmsg.restype = ctypes.c_ssize_t
    _clock_gettime = _libc.clock_gettime
    _clock_gettime.argtypes = [ctypes.c_int, ctypes.c_void_p]
    _sched_yield = _libc.sched_yield
    _getsockopt = _libc.getsockopt
    _getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    _errno = ctypes.get_errno
else:
    _recvmmsg = types.ExternalFunction(
        "recvmmsg", types.int32(types.int32, types.intp, types.uint32, types.int32, types.intp)
    )
    _sendmsg = types.ExternalFunction("sendmsg", types.intp(types.int32, types.intp, types.int32))
    _clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())
    _getsockopt = types.ExternalFunction(
        "getsockopt", types.int32(types.int32, types.int32, types.int32, types.intp, types.intp)
    )


@compiled
def receive(descriptor: int, messages: Longs, wait: bool) -> int:
    """recvmmsg(2) into `messages` (int64[n, 8], each a struct mmsghdr): how many came, or -errno.

    Unless it may `wait` for the first message, none is -EAGAIN.
    """
    flags = _MSG_WAITFORONE if wait else _MSG_DONTWAIT
    count = int(_recvmmsg(descriptor, messages.ctypes.data, messages.shape[0], flags, 0))
    if count < 0:
        return -int(_errno())
    return count


@compiled
def let_others_run() -> None:
    """sched_yield(2)."""
    _sched_yield()


@compiled
def send(descriptor: int, message: Longs) -> int:
    """sendmsg(2) of `message` (int64[7], a struct msghdr): 0 or -errno."""
    if int(_sendmsg(descriptor, message.ctypes.data, 0)) < 0:
        return -int(_errno())
    return 0


@compiled
def waiting_bytes(descriptor: int, scratch: Longs) -> int:
    """Memory of the messages that wait in a socket, in bytes; 0 where the kernel does not tell (before 4.12).

    `scratch` is int64[6]: nine numbers of 32 bits of which the first is the answer, then the bytes of them.
    """
    scratch[0], scratch[5] = 0, 36
    _getsockopt(descriptor, _SOL_SOCKET, _SO_MEMINFO, scratch.ctypes.data, scratch.ctypes.data + 40)
    return int(scratch[0] & 0xFFFFFFFF)


@compiled
def now_us(clock: Longs) -> int:
    """CLOCK_MONOTONIC in microseconds; `clock` (int64[2], a struct timespec) is scratch space."""
    _clock_gettime(_CLOCK_MONOTONIC, clock.ctypes.data)
    return int(clock[0] * 1_000_000 + clock[1] // 1000)
