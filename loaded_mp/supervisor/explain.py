"""What would become of a client's packet now, and why: asked of the functions that decide it."""

import time

import numpy as np

from loaded_mp.control.commands import CommandError
from loaded_mp.datapath.home import foresee
from loaded_mp.datapath.lookup import NO_PORT, Ends
from loaded_mp.datapath.picks import ALL_FULL
from loaded_mp.datapath.work import Work, work_of
from loaded_mp.fields import Address, Listener
from loaded_mp.memory.shared import SharedMemory
from loaded_mp.memory.snapshot import Flag, Pick
from loaded_mp.packet.address import Address128, address128
from loaded_mp.schedulers import scheduler_of
from loaded_mp.services import Part
from loaded_mp.status import CandidateStatus, Explanation
from loaded_mp.supervisor.backends import Backends

#: The address ::, which is no VIP.
NOBODY = Address128(np.uint64(0), np.uint64(0))

_PICKED = {
    Pick.NEXT: "next in turn",
    Pick.HASH: "by the hash of its address",
    Pick.LEAST: "it has the fewest flows for its weight",
    Pick.IDLE: "it has no flows, or the fewest for its weight",
    Pick.ROOM: "the first that has no more flows than its weight",
    Pick.FIRST: "it has the highest weight",
    Pick.LOCAL: "the VIP has it, or it has the fewest flows for its weight",
    Pick.REPLICATED: "of those that the VIP has, or of all, it has the fewest flows for its weight",
    Pick.TWO: "of the next two in turn it has fewer flows for its weight",
    Pick.DESTINATION: "by the hash of the VIP",
}
_ALL_DOWN = "no backend gets new flows"
_ALL_FULL = "no backend may have more flows"


def explain(
    memory: SharedMemory,
    backends: Backends,
    source_and_vip: tuple[Address, Address],
    protocol: Listener,
    port: int | None,
    mark: int = 0,
) -> Explanation:
    """What would become of a packet from a source to a VIP that begins something; nothing is changed.

    Of `protocol` the ports do not count. Without a port it is as a fragment, which any listener of its
    protocol answers. Raises CommandError.
    """
    source, vip = source_and_vip
    if source.version != vip.version:
        raise CommandError(f"{source} and {vip} are of two families: no packet has both")
    number = protocol.iana(vip.version)
    ends = address128(source), address128(vip)
    asked = question(memory, *ends, number, NO_PORT if port is None else port, mark)
    service, entry, held, backend = foresee(*asked)
    part = backends.services.by_id.get(service)
    listener = _listener(part, protocol, port, mark) if part else None
    left_s = max(0, int(memory.table.deadlines_s[entry]) - int(time.monotonic())) if held >= 0 else 0
    return Explanation(
        source=str(source),
        vip=str(vip),
        protocol=protocol.protocol if protocol.ports else str(protocol),
        port=port,
        service=part.service.name if part else "",
        listener=str(listener or "everything") if part else "",
        flow=_name(part, held),
        flow_left_s=left_s,
        candidates=_candidates(part, backends) if part else (),
        backend=_name(part, backend),
        address=str(part.backends[backend].address) if part and backend in part.backends else "",
        backend_port=_backend_port(part, backend, listener, port) if part else None,
        why=_why(part, held, backend, asked[0]) if part else _unanswered(vip, backends),
        forwarding=part.service.forwarding if part else "",
    )


def question(
    memory: SharedMemory, client: Address128, vip: Address128, protocol: int, port: int, mark: int = 0
) -> tuple[Work, Ends, int, int]:
    """What `foresee` is asked: the work of a worker, but with turns and notes that nobody else reads."""
    # Compiled code cannot hand a part of an array to Python.
    work: Work = getattr(work_of, "py_func", work_of)(memory, 0, 0)
    ends = Ends(protocol, client, 0, vip, max(port, 0))
    return work._replace(cursors=memory.cursors.copy(), full=memory.full.copy()), ends, port, mark


def _name(part: Part | None, number: int) -> str:
    if part is None or number not in part.backends:
        return ""
    backend = part.backends[number]
    return backend.name or str(backend.address)


def _listener(part: Part, protocol: Listener, port: int | None, mark: int) -> Listener | None:
    """The narrowest of those that fit, which is the one that counts."""
    if mark and (marked := [each for each in part.service.listen if each.mark == mark]):
        return marked[0]

    def breadth(listener: Listener) -> int:
        return listener.last_port - listener.first_port

    fitting = [
        each
        for each in part.service.listen
        if not each.mark
        and each.iana(part.family) == protocol.iana(part.family)
        and (port is None or each.first_port <= port <= each.last_port)
    ]
    return min(fitting, key=breadth) if fitting else None


def _backend_port(part: Part, backend: int, listener: Listener | None, port: int | None) -> int | None:
    """What a backend's own port makes of that of a packet."""
    if backend not in part.backends or not (listener and listener.ports and port):
        return None
    own = part.backends[backend].address.port
    return own + port - listener.first_port if own and own != listener.first_port else None


def _candidates(part: Part, backends: Backends) -> tuple[CandidateStatus, ...]:
    return tuple(
        CandidateStatus(
            name=backend.name or str(backend.address),
            address=str(backend.address),
            weight=backend.weight,
            effective_weight=backends.states[number].effective_weight(backend.weight),
            left_out=backends.states[number].left_out(backend.weight) or backends.full(number),
        )
        for number, backend in part.backends.items()
    )


def _why(part: Part, held: int, backend: int, work: Work) -> str:
    if backend < 0:
        rejected = part.service.all_down == "reject"
        cause = _ALL_FULL if backend == ALL_FULL else _ALL_DOWN
        return f"{cause}: the packet is {'rejected' if rejected else 'dropped'}"
    if backend == held:
        usable = work.snapshot.backend_flags[held] & Flag.USABLE
        return "its flow stays there" if usable else "its flow stays there, as on_down says"
    picked = _PICKED[scheduler_of(part.service.scheduler).pick]
    return f"{picked}, as its flow cannot stay" if held >= 0 else picked


def _unanswered(vip: Address, backends: Backends) -> str:
    passes = "the packet passes, and loaded-mp does not touch it"
    if any(vip in part.vips.values() for part in backends.services.parts):
        return f"no service answers this protocol and port on {vip}: {passes}"
    return f"{vip} is no VIP: {passes}"
