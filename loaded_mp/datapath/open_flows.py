"""How many flows backends have, and whether that is as many as they may have."""

import numpy as np

from loaded_mp.compiled import compiled, signed
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import BackendCounter, FlowTableCounter
from loaded_mp.memory.snapshot import MAX_BACKENDS, LimitColumn, ServiceColumn

_ONE = np.uint64(1)


@compiled
def open_flows(work: Work, backend: int) -> int:
    """How many flows a backend has, over all workers."""
    flows = signed(work.active[-1, backend])
    for worker in range(work.rows):
        flows += work.active[worker, backend]
    return flows


@compiled
def is_full(work: Work, backend: int) -> bool:
    """Whether a backend gets no new flows: it has had as many as it may have, and not few enough since.

    As IP_VS_DEST_F_OVERLOAD in net/netfilter/ipvs/ip_vs_conn.c. Workers that ask at the same moment hear the
    same, so that a backend may get as many flows too many as there are other workers.
    """
    flows = open_flows(work, backend)
    if flows >= work.snapshot.backend_limits[backend, LimitColumn.MOST]:
        work.full[backend] = 1
    elif flows < work.snapshot.backend_limits[backend, LimitColumn.FEWEST]:
        work.full[backend] = 0
    return bool(work.full[backend] != 0)


@compiled
def count_flow(work: Work, backend: int, before: int) -> None:
    """Count a flow that a backend got, from the value `before` unless that is no open flow's."""
    work.backends_counted[backend][BackendCounter.NEW_FLOWS] += _ONE
    work.active[work.worker, backend] += 1
    if 0 <= before < MAX_BACKENDS:
        work.active[work.worker, before] -= 1
    if work.snapshot.services[work.snapshot.backend_services[backend]][ServiceColumn.LIMITED]:
        is_full(work, backend)  # takes note of it, whatever ends before the next one asks


@compiled
def count_evicted(work: Work, value: int) -> None:
    """Count a flow with this value that gave way; none did if it is negative."""
    if value >= 0:
        work.table_counted[FlowTableCounter.EVICTIONS] += _ONE
        count_ended(work, value)


@compiled
def count_ended(work: Work, value: int) -> None:
    """Count the end of a flow with this value, unless it is none of those that are open."""
    if value < MAX_BACKENDS:
        work.active[work.worker, value] -= 1
