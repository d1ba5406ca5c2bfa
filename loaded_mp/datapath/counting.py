"""What is counted of each backend, by workers and by the fast path."""

import numpy as np

from loaded_mp.compiled import Bytes, compiled
from loaded_mp.datapath.work import Work
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.packet.header import KIND_PORTS, TCP, Header
from loaded_mp.packet.reset import Step, says_something

_ONE = np.uint64(1)


@compiled
def count_to_backend(work: Work, backend: int, header: Header) -> None:
    """Count a packet to a backend."""
    row = work.backends_counted[backend]
    row[BackendCounter.TO_BACKEND_PACKETS] += _ONE
    row[BackendCounter.TO_BACKEND_BYTES] += np.uint64(header.end - header.start)


@compiled
def count_begun(work: Work, backend: int, step: int) -> None:
    """Count the beginning of a connection, where this step is one."""
    work.backends_counted[backend][BackendCounter.CONNECTIONS] += np.uint64(step == Step.BEGINS)


@compiled
def count_to_client(work: Work, backend: int, header: Header) -> None:
    """Count a packet from a backend."""
    row = work.backends_counted[backend]
    row[BackendCounter.TO_CLIENT_PACKETS] += _ONE
    row[BackendCounter.TO_CLIENT_BYTES] += np.uint64(header.end - header.start)


@compiled
def count_words(work: Work, backend: int, packet: Bytes, header: Header) -> None:
    """Count a backend's packet that is no reset, if it says something."""
    if header.kind != KIND_PORTS or header.protocol != TCP or says_something(packet, header):
        work.backends_counted[backend][BackendCounter.WORDS] += _ONE
