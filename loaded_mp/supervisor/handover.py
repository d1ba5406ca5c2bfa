"""What one supervisor leaves to the next: the memory and the queues' sockets.

`restart` hands them on through exec, in the same process. After a supervisor was killed, or left because
systemd starts it again, its workers go on; the next one takes the descriptors out of them (pidfd_getfd(2)).
That works for both, and without systemd, as its file-descriptor store would not. Numbers of names and states
of backends are notes in the memory itself.
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import BaseModel, ValidationError

from loaded_mp.bpf import arena_of, link_of
from loaded_mp.checks.check import Finding
from loaded_mp.checks.health import Health
from loaded_mp.config.model import Backend, ClientAffinity, Config
from loaded_mp.fields import AddressField, EndpointField
from loaded_mp.log import event
from loaded_mp.memory.segment import LayoutError
from loaded_mp.memory.shared import (
    MAX_NOTES_BYTES,
    SharedMemory,
    read_notes,
    shared_memory_of,
    write_notes,
)
from loaded_mp.network.queues import read_queues
from loaded_mp.services import Family, Ids, queues_of, with_workers
from loaded_mp.status import Wanted
from loaded_mp.supervisor import systemd
from loaded_mp.supervisor.affinities import Affinities, Numbered, Succession
from loaded_mp.supervisor.orphans import orphans
from loaded_mp.supervisor.overlay import Overlay
from loaded_mp.supervisor.state import BackendState, Checked

log = logging.getLogger(__name__)

_VARIABLE = "LOADED_MP_INHERITED"
#: The number of pidfd_getfd(2), the same on all machines (asm-generic/unistd.h).
_PIDFD_GETFD = 438
_NETLINK_NETFILTER = 12
_END_TIMEOUT_S = 2.0


class Inherited(BaseModel):
    """Descriptors in this process, and who serves meanwhile."""

    memory: int
    queues: dict[int, int]  #: by the number of the queue
    workers: list[int]  #: processes
    links: list[int] = []  #: of the fast path


class NotedCheck(BaseModel):
    """What a check says."""

    up: bool
    guessed: bool
    weight: int | None
    percent: int | None
    wanted: Literal["ready", "drain", "maintenance"] | None


class Notes(BaseModel):
    """Numbers of names, the states of backends by their numbers, and what was added and removed."""

    services: list[tuple[str, Family, int]]
    vips: list[tuple[str, AddressField, int]]
    backends: list[tuple[str, EndpointField, int]]
    states: dict[int, tuple[Wanted, int | None, bool, float, str]]
    slow: list[int]  #: backends that start slowly
    checks: dict[int, dict[int, NotedCheck]]  #: by backend id and `Check.key`: what the state does not tell
    affinities: dict[int, list[tuple[int, ClientAffinity]]] = {}  #: by service id, see Succession
    added: list[tuple[str, Backend]] = []  #: with the names of their services
    removed: list[tuple[str, EndpointField]] = []


def inherited() -> Inherited | None:
    """What this process was handed on through exec; None: nothing. To be called once."""
    if text := os.environ.pop(_VARIABLE, ""):
        handed = Inherited.model_validate_json(text)
        for descriptor in _descriptors(handed):
            os.set_inheritable(descriptor, False)
        return handed
    return None


def taken_from_orphans() -> Inherited | None:
    """What workers without a supervisor hold: the memory and each its queue; None if it cannot be had."""
    taken: list[int] = []
    memory: int | None = None
    queues: dict[int, int] = {}
    links: list[int] = []
    workers = orphans()
    for pid in workers:
        try:
            for mine in _taken(pid):
                taken.append(mine)
                if os.readlink(f"/proc/self/fd/{mine}").startswith("/memfd:loaded-mp") or arena_of(mine):
                    memory = mine if memory is None else memory
                elif link_of(mine):
                    links.append(mine)
                elif (queue := _queue_of(mine)) is not None:
                    queues.setdefault(queue, mine)
        except OSError as error:
            # What it gave so far is good. If it lacks something, all is started afresh.
            log.warning(event("orphan-unreadable", pid=pid, cause=str(error)))
    used = set() if memory is None else {memory, *queues.values(), *links}
    for mine in taken:
        if mine not in used:
            os.close(mine)
    if memory is None:
        return None
    return Inherited(memory=memory, queues=queues, workers=workers, links=links)


@dataclass(frozen=True)
class Adopted:
    """What goes on under this supervisor."""

    memory: SharedMemory
    descriptor: int  #: of the memory
    ids: Ids
    states: dict[int, BackendState]
    overlay: Overlay
    affinities: dict[int, Succession]  #: by service id
    queues: dict[int, int]  #: number -> descriptor
    workers: list[int]  #: processes that serve meanwhile
    links: list[int]  #: of the fast path


def adopt(handed: Inherited, config: Config) -> Adopted | None:
    """What can go on with a configuration; None, and a line in the log, if it is another kind of memory."""
    try:
        memory = shared_memory_of(handed.memory, config.flows)
    except (LayoutError, OSError) as error:
        _say_refused(str(error))
        return None
    noted = read_state(memory)
    workers = len(handed.queues)  # a reload brings it to what the configuration says
    if (
        noted is None
        or not workers
        or sorted(handed.queues) != list(queues_of(with_workers(config, workers)))
    ):
        _say_refused("the queues are others" if noted else "nothing was noted in the shared memory")
        return None
    return Adopted(memory, handed.memory, *noted, handed.queues, handed.workers, handed.links)


def let_go(handed: Inherited) -> None:
    """End what cannot go on: workers, and the queues with their packets."""
    for pid in handed.workers:
        end(pid)
    for descriptor in _descriptors(handed):
        os.close(descriptor)


def _say_refused(cause: str) -> None:
    log.warning(event("started-afresh", cause=cause, effect="connections may break"))


def hand_on(handed: Inherited) -> NoReturn:
    """Become the program anew, from its file, with what is handed on. Workers go on meanwhile."""
    for descriptor in _descriptors(handed):
        os.set_inheritable(descriptor, True)
    os.environ[_VARIABLE] = handed.model_dump_json()
    systemd.tell_beginning_anew()
    os.execv(sys.executable, [sys.executable, "-m", "loaded_mp", *sys.argv[1:]])


def leave() -> NoReturn:
    """End this process and nothing else: workers go on, and the next start takes over what they hold."""
    log.info(event("leaving", cause="systemd starts it again", effect="workers go on meanwhile"))
    os._exit(0)


def write_state(
    memory: SharedMemory,
    ids: Ids,
    states: dict[int, BackendState],
    overlay: Overlay,
    affinities: Affinities,
) -> None:
    """Note what the next supervisor has to know."""
    notes = Notes(
        services=[(name, family, number) for (name, family), number in ids.services.items()],
        vips=[(name, vip, number) for (name, vip), number in ids.vips.items()],
        backends=[(name, endpoint, number) for (name, endpoint), number in ids.backends.items()],
        states={
            number: (each.wanted, each.weight, each.up, each.since_s, each.cause[:200])
            for number, each in states.items()
        },
        slow=[number for number, each in states.items() if each.slow],
        checks={number: noted for number, each in states.items() if (noted := _noted(each))},
        affinities={number: list(each) for number, each in affinities.successions.items()},
        added=[(service, each) for (service, _), each in overlay.added.items()],
        removed=sorted(overlay.removed, key=str),
    )
    text = notes.model_dump_json().encode()
    write_notes(memory, text if len(text) <= MAX_NOTES_BYTES else b"")


def read_state(
    memory: SharedMemory,
) -> tuple[Ids, dict[int, BackendState], Overlay, dict[int, Succession]] | None:
    """What the last supervisor noted; None if it noted nothing that can be read."""
    try:
        notes = Notes.model_validate_json(read_notes(memory))
    except ValidationError:
        return None
    ids = Ids()
    ids.services.restore(((name, family), number) for name, family, number in notes.services)
    ids.vips.restore(((name, vip), number) for name, vip, number in notes.vips)
    ids.backends.restore(((name, endpoint), number) for name, endpoint, number in notes.backends)
    states = {
        number: BackendState(wanted, weight, up, since_s, cause, slow=number in notes.slow)
        for number, (wanted, weight, up, since_s, cause) in notes.states.items()
    }
    for number, state in states.items():
        state.noted = {
            key: Checked(
                Health(each.up, guessed=each.guessed),
                Finding(weight=each.weight, percent=each.percent, wanted=each.wanted),
            )
            for key, each in notes.checks.get(number, {}).items()
        }
    added = {(service, each.address): each for service, each in notes.added}
    affinities = {
        service: tuple(Numbered(*each) for each in noted) for service, noted in notes.affinities.items()
    }
    return ids, states, Overlay(added, frozenset(notes.removed)), affinities


def _noted(state: BackendState) -> dict[int, NotedCheck]:
    """The checks that say something else than the state of their backend, or more."""
    plain = Checked(Health(state.up, guessed=False))
    return {
        check.key: NotedCheck(
            up=each.health.up,
            guessed=each.health.guessed,
            weight=each.finding.weight,
            percent=each.finding.percent,
            wanted=each.finding.wanted,
        )
        for check, each in state.checks.items()
        if (each.health.up, each.health.guessed, each.share) != (state.up, False, plain.share)
    }


def _descriptors(handed: Inherited) -> Iterable[int]:
    return [handed.memory, *handed.queues.values(), *handed.links]


def _taken(pid: int) -> Iterable[int]:
    """Duplicates of the descriptors of a process, but for its standard streams."""
    pidfd = os.pidfd_open(pid)
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if int(link.name) > 2:
                mine = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, int(link.name), 0)
                if mine < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                yield mine
    finally:
        os.close(pidfd)


def _queue_of(descriptor: int) -> int | None:
    """The number of the queue that a socket has bound, if it is one."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as maybe:
            if maybe.family != socket.AF_NETLINK or maybe.proto != _NETLINK_NETFILTER:
                return None
            port = maybe.getsockname()[0]
    except OSError:
        return None
    queues = read_queues().items()
    return next((number for number, each in queues if each.port & 0xFFFFFFFF == port), None)


def end(pid: int) -> None:
    """End a worker of an earlier supervisor and wait until it is gone. Its queue stays bound."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait(pidfd)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _wait(pidfd: int) -> None:
    select.select([pidfd], [], [], _END_TIMEOUT_S)
