"""Bringing this machine to what a plan says, and back. Every change is on record before it is made."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from loaded_mp.network import iptables, links, sysctls
from loaded_mp.network.changes import Change
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Host
from loaded_mp.network.patience import patience
from loaded_mp.network.record import Record, current_namespace, read_record, write_record

#: How each kind of change is made and taken back; both raise NetworkError, and pass over what is so already.
_KINDS: dict[str, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
    "link": (links.set_up, links.set_down),
    "address": (links.add_address, links.delete_address),
    "route": (links.add_route, links.delete_route),
    "local": (links.add_route, links.delete_route),
    "sysctl": (sysctls.apply, sysctls.undo),
    "chain": (iptables.apply, iptables.undo),
}


def read_host() -> Host:
    """This machine as it was before earlier changes of ours. Needs no privileges. Raises NetworkError."""
    record = read_record()
    found = links.read_links()
    host = Host(**found._asdict(), sysctls=sysctls.read_sysctls(), iptables=iptables.variant())
    for each in record.changes if record else ():
        host = each.before(host)
    return host


def change(wanted: Sequence[Change]) -> None:
    """Bring this machine from the changes that are on record to others.

    Each chain is replaced as a whole, so that no packet slips by while that happens. What others have
    taken away in the meantime is put back. The queues have to be bound already, as packets for a queue that
    nobody bound are dropped. Raises NetworkError; then the machine is as it was.
    """
    record = read_record() or Record(namespace=current_namespace())
    before = record.changes
    try:
        _reach(record, wanted)
    except NetworkError:
        if mine := patience.get(None):
            mine.renew()
        with suppress(NetworkError):
            _reach(record, before)
        raise


def stands(wanted: Sequence[Change]) -> bool:
    """Whether just these changes are on record. Raises NetworkError."""
    record = read_record()
    return record is not None and [each.command for each in record.changes] == [
        each.command for each in wanted
    ]


def take_down() -> None:
    """Take back every change on record; without one, do nothing.

    What is gone already is passed over. Raises NetworkError if something cannot be taken back; the rest
    is, and what could not be stays on record.
    """
    record = read_record()
    if record:
        _reach(record, ())


def restore(lost: Iterable[Change]) -> None:
    """Make changes again that others have undone, in this order; the record stays as it is.

    Raises NetworkError if some cannot be made; the others are.
    """
    failures = []
    for each in lost:
        try:
            _apply(each)
        except NetworkError as error:
            failures.append(str(error))
    if failures:
        raise NetworkError("; ".join(dict.fromkeys(failures)))


def left_over() -> bool:
    """Whether changes are on record for this network namespace. Raises NetworkError."""
    return read_record() is not None


def _reach(record: Record, wanted: Sequence[Change]) -> None:
    """Undo what is on record and not wanted, and do what is wanted."""
    made = {each.command: each for each in record.changes}
    places = {each.place for each in wanted}
    stale = [each for each in reversed(record.changes) if each.place not in places]
    failures = _undo(each for each in stale if each.undone_first)
    reached = tuple(made.get(each.command, each) for each in wanted)
    for each in reached:
        if each.command not in made:
            record.changes += (each,)
            write_record(record)
        _apply(each)
    failures |= _undo(each for each in stale if not each.undone_first)
    record.changes = (*(each for each in record.changes if each.command in failures), *reached)
    write_record(record)
    if failures:
        raise NetworkError("; ".join(dict.fromkeys(failures.values())))


def _apply(each: Change) -> None:
    _KINDS[each.kind][0](each)


def _undo(changes: Iterable[Change]) -> dict[str, str]:
    """Take changes back as far as that is possible; the commands of the others, and why not."""
    failures = {}
    for each in changes:
        try:
            _KINDS[each.kind][1](each)
        except NetworkError as error:
            failures[each.command] = str(error)
    return failures
