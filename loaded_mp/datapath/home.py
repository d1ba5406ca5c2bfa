"""Which backend a client has: its flow, entered, moved, renewed and ended."""

from typing import NamedTuple

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.affinity import client_flow, is_connection, kind_of, known_flow
from loaded_mp.datapath.lookup import Ends, service_of, vip_row
from loaded_mp.datapath.open_flows import count_ended, count_evicted, count_flow
from loaded_mp.datapath.picks import ALL_FULL, NO_BACKEND, pick, pick_for_good
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow
from loaded_mp.flows.table import find, insert, remove, replace, shorten, touch, value_of
from loaded_mp.memory.snapshot import CLOSING, MAX_BACKENDS, Affinity, Answer, Flag, ServiceColumn
from loaded_mp.packet.header import TCP, UDP
from loaded_mp.packet.reset import Step

#: How often a flow is looked up anew because another worker changed it at the same moment.
_TRIES = 16
#: In place of a backend id, beside those of picks.py.
LOST_RACE = -2


@compiled
def backend_for(work: Work, service: int, ends: Ends, step: int) -> int:
    """The backend of a client's packet, its flow entered or moved if need be; else NO_BACKEND,
    ALL_FULL or LOST_RACE.

    `step`: of a TCP connection, else Step.GOES_ON.
    """
    row = work.snapshot.services[service]
    own = client_flow(work, service, ends)
    if kind_of(work, service) == Affinity.NONE:
        return pick_for_good(work, service, own, ends.server)
    first_s = _idle_s(work, service, ends.protocol)
    # Of a connection that the kernel goes on with, no second packet is seen.
    if row[ServiceColumn.ANSWER] != Answer.MARK:
        first_s = min(first_s, row[ServiceColumn.UNCONFIRMED_S])
    for _ in range(_TRIES):
        flow = known_flow(work, service, own, ends, step)
        held = _go_on(work, service, flow, ends, step)
        if held >= 0:
            return held
        entry, word = find(work.table, flow)
        if held == LOST_RACE and entry >= 0:
            continue
        if flow.scope != own.scope:
            # Else what goes to another backend now would be back at this one once it is up again.
            if entry >= 0 and remove(work.table, entry, word):
                count_ended(work, value_of(word))
            continue
        backend = pick_for_good(work, service, flow, ends.server)
        if backend in (NO_BACKEND, ALL_FULL):
            return backend
        if entry >= 0:
            if replace(work.table, entry, word, backend):
                count_flow(work, backend, value_of(word))
            continue
        held, evicted = insert(work.table, flow, backend, work.now_s + first_s)
        count_evicted(work, evicted)
        if held == backend:
            count_flow(work, backend, -1)
            return backend
    return LOST_RACE


class Foreseen(NamedTuple):
    """What would become of a packet. Ids are -1 where there is none."""

    service: int
    entry: int  #: of the client's flow in the table
    held: int  #: the backend id that the flow has
    backend: int  #: that of the backend that the packet would go to; ALL_FULL where none takes it


@compiled
def foresee(work: Work, ends: Ends, port: int, mark: int) -> Foreseen:
    """What would become of a client's packet that begins something. `port` is what listeners are asked for.

    This takes turns of a service and notes who is full, so let `work` have `cursors` and `full` of its own;
    nothing else is changed.
    """
    vip = vip_row(work.snapshot, ends.server)
    service = service_of(work.snapshot, vip, ends.protocol, port, mark) if vip >= 0 else -1
    if service < 0:
        return Foreseen(-1, -1, -1, -1)
    own = client_flow(work, service, ends)
    if kind_of(work, service) == Affinity.NONE:
        return Foreseen(service, -1, -1, pick(work, service, own, ends.server))
    step = Step.BEGINS if ends.protocol == TCP else Step.GOES_ON
    flow = known_flow(work, service, own, ends, step)
    entry, _, held, stays = _held(work, service, flow, ends, step)
    return Foreseen(service, entry, held, held if stays else pick(work, service, own, ends.server))


@compiled
def _held(work: Work, service: int, flow: Flow, ends: Ends, step: int) -> tuple[int, np.uint64, int, bool]:
    """A flow's entry, word and backend id, -1 if there is none, and whether a packet goes on with it."""
    entry, word = find(work.table, flow)
    value = value_of(word)
    held = value & ~CLOSING
    if entry < 0 or not _serves(work, held, service):
        return entry, word, -1, False
    begins_anew = value & CLOSING != 0 and step == Step.BEGINS
    return entry, word, held, _stays(work, held, ends.protocol, step) and not begins_anew


@compiled
def _go_on(work: Work, service: int, flow: Flow, ends: Ends, step: int) -> int:
    """The backend with which a flow goes on, renewed or ended; NO_BACKEND if there is none, or LOST_RACE."""
    held = keep(work, service, flow, ends, step)
    if held >= 0 and step in (Step.ENDS, Step.BREAKS):
        _close(work, service, flow)
    return held


@compiled
def keep(work: Work, service: int, flow: Flow, ends: Ends, step: int) -> int:
    """The backend with which a flow goes on, renewed; NO_BACKEND if there is none, or LOST_RACE."""
    entry, word, held, stays = _held(work, service, flow, ends, step)
    if not stays:
        return NO_BACKEND
    idle_s = _idle_s(work, service, ends.protocol)
    if value_of(word) & CLOSING:
        idle_s = min(idle_s, work.snapshot.services[service][ServiceColumn.FIN_IDLE_S])
    if not touch(work.table, entry, word, work.now_s, work.now_s + idle_s):
        return LOST_RACE
    return held


@compiled
def renew(work: Work, backend: int, ends: Ends, step: int) -> None:
    """Let a client's flow live on, as its backend has answered; if it is forgotten, enter it again."""
    service = work.snapshot.backend_services[backend]
    if kind_of(work, service) == Affinity.NONE:
        return
    own = client_flow(work, service, ends)
    flow = known_flow(work, service, own, ends, step)
    held = answered(work, backend, flow, ends, step)
    if held == backend and step in (Step.ENDS, Step.BREAKS):
        _close(work, service, flow)
    elif held < 0 and work.snapshot.backend_flags[backend] & Flag.USABLE and step != Step.BREAKS:
        held, evicted = insert(work.table, own, backend, work.now_s + _answered_s(work, service, ends, step))
        count_evicted(work, evicted)
        if held == backend:
            count_flow(work, backend, -1)


@compiled
def answered(work: Work, backend: int, flow: Flow, ends: Ends, step: int) -> int:
    """The backend id that a client's flow has, or -1; renewed if it is `backend`, which has answered."""
    service = work.snapshot.backend_services[backend]
    entry, word = find(work.table, flow)
    if entry < 0:
        return -1
    value = value_of(word)
    held = value & ~CLOSING
    if held == backend:
        idle_s = _answered_s(work, service, ends, step)
        if value & CLOSING:
            idle_s = min(idle_s, work.snapshot.services[service][ServiceColumn.FIN_IDLE_S])
        touch(work.table, entry, word, work.now_s, work.now_s + idle_s)
    return held


@compiled
def _answered_s(work: Work, service: int, ends: Ends, step: int) -> int:
    """How long a flow lives after an answer.

    That to a SYN confirms nothing: SYNs from invented sources are answered too.
    """
    idle_s = _idle_s(work, service, ends.protocol)
    if step in (Step.BEGINS, Step.ANSWERS, Step.BREAKS):
        idle_s = min(idle_s, work.snapshot.services[service][ServiceColumn.UNCONFIRMED_S])
    return idle_s


@compiled
def _close(work: Work, service: int, flow: Flow) -> None:
    """Let a flow that is one connection end: it is no open flow any more, and forgotten soon."""
    if not is_connection(flow):
        return
    entry, word = find(work.table, flow)
    value = value_of(word)
    if entry >= 0 and not value & CLOSING and replace(work.table, entry, word, value | CLOSING):
        shorten(work.table, entry, work.now_s + work.snapshot.services[service][ServiceColumn.FIN_IDLE_S])
        work.active[work.worker, value] -= 1


@compiled
def home_of(work: Work, service: int, ends: Ends) -> int:
    """The backend that a client has in a service; -1 if it has none."""
    own = client_flow(work, service, ends)
    entry, word = find(work.table, known_flow(work, service, own, ends, Step.GOES_ON))
    backend = value_of(word) & ~CLOSING
    return backend if entry >= 0 and _serves(work, backend, service) else -1


@compiled
def has_flow(work: Work, backend: int, ends: Ends) -> bool:
    """Whether a client's flow goes to a backend; where there are no flows, it may."""
    service = work.snapshot.backend_services[backend]
    if kind_of(work, service) == Affinity.NONE:
        return True
    return bool(home_of(work, service, ends) == backend)


@compiled
def _serves(work: Work, value: int, service: int) -> bool:
    """Whether a value from the flow table is a backend of a service; it may have been taken away."""
    return value < MAX_BACKENDS and work.snapshot.backend_services[value] == service


@compiled
def _stays(work: Work, backend: int, protocol: int, step: int) -> bool:
    """Whether a packet of this protocol goes on to the backend that its flow has."""
    flags = work.snapshot.backend_flags[backend]
    if flags & Flag.USABLE:
        return True
    if protocol == TCP:
        return bool(flags & Flag.KEEP_TCP or (flags & Flag.RESET and step != Step.BEGINS))
    return bool(flags & (Flag.KEEP_UDP if protocol == UDP else Flag.KEEP_OTHER))


@compiled
def _idle_s(work: Work, service: int, protocol: int) -> int:
    column = ServiceColumn.OTHER_IDLE_S
    if protocol == TCP:
        column = ServiceColumn.TCP_IDLE_S
    elif protocol == UDP:
        column = ServiceColumn.UDP_IDLE_S
    idle_s: int = work.snapshot.services[service][column]
    return idle_s
