"""One worker process: gives up what it does not need, then serves its queue until it is told to stop."""

import ctypes
import logging
import os
import pwd
import signal
import tempfile
import time
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from loaded_mp.config.user import OWN_USER, SHARED_USER
from loaded_mp.datapath.loop import give_back, new_batch, serve
from loaded_mp.log import event
from loaded_mp.memory.shared import SharedMemory, Stamp

log = logging.getLogger(__name__)

# include/uapi/linux/prctl.h and capability.h
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 8, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_NET_ADMIN = 12
_CAP_LAST = 63

#: A worker that was told to stop serves what waits, but no longer than this.
DRAIN_S = 3.0


class WorkerError(Exception):
    """A worker cannot start; the message says why."""


@dataclass(frozen=True)
class Place:
    """What a worker serves, whichever process it is."""

    number: int  #: its row in shared memory
    queue: int
    descriptor: int  #: of the queue's socket
    memory: int  #: descriptor of the shared memory, for a supervisor that comes later
    core: int | None  #: None: any
    user: str
    links: tuple[int, ...] = ()  #: descriptors of the fast path's, which lasts as long as anybody has them


def run(memory: SharedMemory, place: Place, replacing: bool) -> NoReturn:
    """Serve a place's queue; ends the process, status 0 after SIGTERM.

    `replacing`: an earlier worker died in this place and may have left packets undecided.
    """
    status = 1
    try:
        stop = _Stop()
        if place.core is not None:
            os.sched_setaffinity(0, {place.core})
        batch = new_batch(place.descriptor, place.queue)
        give_up_privileges(place.user)
        if replacing:
            give_back(batch, int(memory.stamps[place.number, Stamp.LAST_READ_ID]))
        while True:
            served = serve(batch, memory, place.number, replacing)
            if served < 0:
                log.error(
                    event("queue-broken", worker=place.number, queue=place.queue, error=os.strerror(-served))
                )
                break
            replacing = replacing and served == 0
            if stop.deadline_s is not None and (served == 0 or time.monotonic() > stop.deadline_s):
                status = 0
                break
    except (OSError, WorkerError) as error:
        log.error(event("worker-failed", worker=place.number, error=str(error)))
    finally:
        os._exit(status)


def warn_of_shared(user: str) -> None:
    """One line in the log if workers do not have their user for themselves."""
    if user == SHARED_USER:
        log.warning(
            event("user-shared", user=user, effect="its other programs may end workers", add_user=OWN_USER)
        )


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def give_up_privileges(user: str) -> None:
    """Become `user` in an empty, deleted root folder, with CAP_NET_ADMIN (verdicts need it) and nothing else.

    Raises WorkerError if there is no such user, OSError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise WorkerError(f"there is no user {user!r}") from None
    root = tempfile.mkdtemp(prefix="loaded-mp-")
    os.chdir(root)
    os.rmdir(root)
    os.chroot(".")
    for capability in range(_CAP_LAST + 1):
        # The kernel answers EINVAL for capabilities that it does not know.
        if capability != _CAP_NET_ADMIN:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    call(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    bit = 1 << _CAP_NET_ADMIN
    data = (_CapData * 2)(_CapData(bit, bit, 0), _CapData(0, 0, 0))
    call(libc.capset(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), data), "capset")
    call(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


class _Stop:
    """Set by SIGTERM. SIGINT is left to the supervisor, who gets it from the terminal too."""

    def __init__(self) -> None:
        self.deadline_s: float | None = None
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.deadline_s = time.monotonic() + DRAIN_S
