"""How long our processes ask to run at once."""

import ctypes
import os
import struct

#: struct sched_attr (include/uapi/linux/sched/types.h): size, policy, flags, nice, priority, runtime, ...
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
#: The number of sched_setattr(2) by machine (asm/unistd.h): glibc has no function for it before 2.41.
_NUMBERS = {"x86_64": 314, "aarch64": 274}
#: The shortest that the kernel grants (kernel/sched, __setparam_fair).
_SLICE_NS = 100_000


def ask_for_short_slices() -> None:
    """Let this process, and those that it forks, run shortly but soon: from Linux 6.12 on, others ignore it.

    A process that is woken may take the core of one with longer slices; else a packet waits until that one
    has had its milliseconds. A policy that is not the usual one is left as it is. Raises OSError if the
    kernel, or a filter of system calls, refuses.
    """
    number = _NUMBERS.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, attributes, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
