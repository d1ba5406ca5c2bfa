"""Bringing the host to what a configuration needs, and back. Every change is on record before it is made."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from loaded_mp.config.model import Config
from loaded_mp.log import event
from loaded_mp.network import iptables, links, sysctls
from loaded_mp.network.changes import AddAddress, AddChain, Change, SetSysctl
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.plan import NO_MARKS, Host, Marks, Plan, plan, without
from loaded_mp.network.record import Record, current_namespace, read_record, write_record

log = logging.getLogger(__name__)

__all__ = ["NetworkError", "change", "left_over", "planned", "set_up", "take_down"]


def planned(config: Config, first_queue: int, workers: int, marks: Marks = NO_MARKS) -> Plan:
    """What set_up would do, on top of the host as it was before earlier changes of ours.

    Needs no privileges. Raises NetworkError if an interface does not exist.
    """
    record = read_record()
    found, addresses, routes = links.read_links()
    host = Host(found, addresses, routes, sysctls.read_sysctls())
    return plan(config, without(host, record.changes if record else ()), first_queue, workers, marks)


def set_up(config: Config, first_queue: int, workers: int, marks: Marks = NO_MARKS) -> None:
    """Make all changes for `config`, after taking back what an earlier run left over.

    The queues have to be bound already, as packets for a queue that nobody bound are dropped. Raises
    NetworkError; what had been done is taken back then.
    """
    take_down()
    change(config, first_queue, workers, marks)


def change(config: Config, first_queue: int, workers: int, marks: Marks = NO_MARKS) -> None:
    """Bring the host from the configuration that it is set up for to another one.

    Each chain is replaced as a whole, so that no packet slips by while that happens. What others have
    taken away in the meantime is put back. Raises NetworkError; then the host is as it was.
    """
    record = read_record() or Record(namespace=current_namespace(), variant=iptables.variant())
    wanted = planned(config, first_queue, workers, marks).changes
    before = record.changes
    try:
        _reach(record, wanted)
    except NetworkError:
        with suppress(NetworkError):
            _reach(record, before)
        raise


def take_down() -> None:
    """Take back every change on record; without one, do nothing.

    What is gone already is passed over. Raises NetworkError if something cannot be taken back; the rest
    is, and what could not be stays on record.
    """
    record = read_record()
    if record:
        _reach(record, ())


def left_over() -> bool:
    """Whether changes are on record for this network namespace. Raises NetworkError."""
    return read_record() is not None


def _reach(record: Record, wanted: Sequence[Change]) -> None:
    """Undo what is on record and not wanted, and do what is wanted.

    Addresses go first: the kernel deletes an IPv4 address together with the one that came before it in
    the same network, which is why those that stay are put again.
    """
    made = {each.command: each for each in record.changes}
    commands = {each.command for each in wanted}
    places = {each.place for each in wanted if isinstance(each, AddChain)}
    stale = [each for each in reversed(record.changes) if each.command not in commands]
    failures = _undo([each for each in stale if isinstance(each, AddAddress)], record.variant)
    reached = tuple(made.get(each.command, each) for each in wanted)
    for each in reached:
        if each.command not in made:
            record.changes += (each,)
            write_record(record)
        _apply(each, record.variant)
    failures |= _undo(
        [
            each
            for each in stale
            if not isinstance(each, AddAddress) and not (isinstance(each, AddChain) and each.place in places)
        ],
        record.variant,
    )
    record.changes = (*(each for each in record.changes if each.command in failures), *reached)
    write_record(record)
    if failures:
        raise NetworkError("; ".join(failures.values()))


def _apply(each: Change, variant: str) -> None:
    if isinstance(each, AddChain):
        iptables.apply(each, variant)
    elif isinstance(each, SetSysctl):
        try:
            sysctls.apply(each)
        except NetworkError as error:
            # A container's /proc/sys is read-only; what it needs comes from its engine.
            if each.needed:
                raise
            log.warning(event("setting-left", cause=str(error)))
    else:
        links.apply(each)


def _undo(changes: Sequence[Change], variant: str) -> dict[str, str]:
    """Take changes back as far as that is possible; the commands of the others, and why not."""
    failures = {}
    for each in changes:
        try:
            if isinstance(each, AddChain):
                iptables.undo(each, variant)
            elif isinstance(each, SetSysctl):
                sysctls.undo(each)
            else:
                links.undo(each)
        except NetworkError as error:
            failures[each.command] = str(error)
    return failures
