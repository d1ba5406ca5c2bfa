"""Configuration of keepalived: `virtual_server` and `virtual_server_group` (keepalived.conf(5), 2.2).

Files that are included are named, not followed; so are lines that hold for some machines only (`@NAME`), and
parameters (`$NAME=`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from loaded_mp.importing.found import Found, Reader, Setting, Table, Word, number
from loaded_mp.importing.keepalived.checks import CHECKS, Asked, program
from loaded_mp.importing.keepalived.reasons import TOP
from loaded_mp.importing.keepalived.statements import Block, Statement, not_carried, statements
from loaded_mp.importing.lvs import (
    PERSISTENCE_S,
    Timeouts,
    put_affinity,
    put_flags,
    put_idle_times,
    put_number,
    service_name,
    way_of,
)
from loaded_mp.importing.virtual import Entrance, Server, Virtual, Way, as_name, listening, port_of
from loaded_mp.memory.snapshot import MAX_VIPS

_BEGINS = re.compile(
    r"^\s*(?:virtual_server(?:_group)?|vrrp_\w+|global_defs|static_\w+)\b[^\n{]*\{?\s*$", re.MULTILINE
)
#: Addresses that a range may have.
_MOST = 1_024
_FLAGS = ("flag-1", "flag-2", "flag-3", "sh-port", "sh-fallback", "mh-port", "mh-fallback")


def _knows(text: str) -> bool:
    return _BEGINS.search(text) is not None


def _read(text: str, name: str) -> Found:
    top, wrong = statements(text, name)
    found = Found(left_out=wrong)
    groups = {each.value: each for each in top if each.name == "virtual_server_group"}
    used: set[str] = set()
    timeouts = _timeouts(top)
    for each in top:
        if each.name == "virtual_server":
            group = " ".join(each.words[2:]) if each.words[1:2] == ["group"] else ""
            used.add(group)
            if entrances := list(_entrances(each, groups, group, found)):
                found.virtuals.append(_virtual(each, entrances, group, timeouts))
        elif each.name == "global_defs":
            if any(inner.name != "lvs_timeouts" for inner in each.block):
                found.left_out.append(each.word.left_out(TOP[each.name]))
        elif each.name != "virtual_server_group":
            found.left_out.append(not_carried(each, TOP))
    for group, each in groups.items():
        if group not in used:
            found.left_out.append(each.word.left_out("no virtual_server names it"))
    return found


def _timeouts(top: list[Statement]) -> Timeouts | None:
    """`lvs_timeouts tcp N tcpfin N udp N`."""
    for block in (each.block for each in top if each.name == "global_defs"):
        for each in block:
            if each.name == "lvs_timeouts":
                said = dict(zip(each.words[1::2], each.words[2::2], strict=False))
                texts = [said.get(name, "0") for name in ("tcp", "tcpfin", "udp")]
                tcp, tcp_fin, udp = (Setting(number(text), each.word) for text in texts)
                return tcp, tcp_fin, udp
    return None


def _entrances(
    statement: Statement, groups: dict[str, Statement], group: str, found: Found
) -> Iterator[Entrance]:
    """Where a virtual server answers."""
    lines = [(statement.words[1:], statement.word)]
    if group:
        if group not in groups:
            why = "there is no such virtual_server_group in this file"
            found.left_out.append(statement.word.left_out(why))
            return
        lines = [(each.words, each.word) for each in groups[group].block]
    room = MAX_VIPS
    for words, word in lines:
        try:
            entrances = list(_entrance(words, word, _protocol(statement)))
            room -= len(entrances)
            if room < 0:
                raise ValueError(f"there is room for {MAX_VIPS:,} addresses")
            yield from entrances
        except ValueError as error:
            found.left_out.append(word.left_out(str(error)))


def _protocol(statement: Statement) -> str:
    said = [each.value.lower() for each in statement.block if each.name == "protocol"]
    return said[-1] if said else "tcp"


def _entrance(words: list[str], word: Word, protocol: str) -> Iterator[Entrance]:
    """`ADDRESS PORT`, a range of addresses, or `fwmark N`. Raises ValueError with what to do."""
    if words[:1] == ["fwmark"] and len(words) > 1:
        yield Entrance(None, Setting(f"mark/{words[1]}", word), None)
        return
    port = port_of(words[1]) if len(words) > 1 else None
    if len(words) > 1 and not port and words[1] != "0":
        raise ValueError("expected a port's number behind the address")
    ports = (port, port) if port else None
    for address in _addresses(words[0] if words else ""):
        yield Entrance(Setting(address, word), Setting(listening(protocol, ports), word), ports)


def _addresses(text: str) -> list[str]:
    """Of `192.0.2.1-10`, `192.0.2.1-192.0.2.20`, `2001:db8::2-9` (hexadecimal) or `192.0.2.0/28`."""
    first_text, dash, last_text = text.partition("-")
    try:
        if "/" in text:
            return [str(ip_network(text, strict=False))]
        first = ip_address(first_text)
        separator = "." if first.version == 4 else ":"
        if separator not in last_text:
            last_text = f"{first_text.rpartition(separator)[0]}{separator}{last_text}"
        last = ip_address(last_text) if dash else first
    except ValueError:
        raise ValueError("expected an address, with or without a port behind it") from None
    if not 0 <= int(last) - int(first) < _MOST:
        raise ValueError(f"expected a range of at most {_MOST:,} addresses")
    return [str(first + step) for step in range(int(last) - int(first) + 1)]


@dataclass(frozen=True)
class _Outer:
    """What a virtual server says for all its real servers."""

    times: dict[str, Statement]
    host: Statement | None
    way: Way
    inhibited: bool  #: whether it is said already


def _virtual(
    statement: Statement, entrances: list[Entrance], group: str, timeouts: Timeouts | None
) -> Virtual:
    block, table = Block(statement.block), Table(statement.word)
    block.take("protocol")
    _put_scheduler(table, block)
    _put_persistence(table, block, entrances, timeouts)
    _put_quorum(table, block)
    if alpha := block.flag("alpha"):
        table.put("initial", "down", alpha.word)
    inhibited = block.flag("inhibit_on_failure") or _inhibited_by_all(statement)
    if inhibited:
        table.put("on_down", "keep", inhibited.word)
    way = _forwarding(block, "lb_kind", "lvs_method") or way_of("NAT", table.word)
    outer = _Outer(block.times({}), block.take("virtualhost"), way, inhibited is not None)
    servers = [_server(each, outer) for each in block.take_all("real_server")]
    sorry_way = _forwarding(block, "sorry_server_lvs_method") or way
    if sorry := block.take("sorry_server"):
        servers.append(_sorry_server(sorry, sorry_way, table))
    said = block.take("snmp_name")
    name = said.value if said else group or service_name(entrances[0])
    table.left_out += block.rest()
    return Virtual(as_name(name), table, entrances, servers)


def _put_scheduler(table: Table, block: Block) -> None:
    if said := block.take("lb_algo", "lvs_sched"):
        table.put("scheduler", said.value, said.word)
    else:
        table.put("scheduler", "wlc", table.word, "without lvs_sched")
    for flag in block.take_all(*_FLAGS):
        put_flags(table, [flag.name], flag.word)


def _put_persistence(
    table: Table, block: Block, entrances: list[Entrance], timeouts: Timeouts | None
) -> None:
    persistence, mask = None, None
    if said := block.take("persistence_timeout"):
        seconds = number(said.value) if said.value else PERSISTENCE_S
        if isinstance(seconds, str):
            table.left_out.append(said.word.left_out("expected a number of seconds"))
        else:
            persistence = Setting(seconds, said.word)
    if said := block.take("persistence_granularity"):
        mask = Setting(said.value, said.word)
    ops = block.flag("ops")
    put_affinity(table, persistence, mask, ops.word if ops else None)
    put_idle_times(table, entrances[0], persistence, timeouts)


def _inhibited_by_all(statement: Statement) -> Statement | None:
    """The `inhibit_on_failure` of the first real server, if each has one."""
    real_servers = [each for each in statement.block if each.name == "real_server"]
    said = [Block(each.block).flag("inhibit_on_failure") for each in real_servers]
    return said[0] if said and all(said) else None


def _forwarding(block: Block, *names: str) -> Way | None:
    """`NAT`, `DR`, or `TUN [type {ipip|gue port N|gre} [CHECKSUM]]`."""
    said = block.take(*names)
    if not said:
        return None
    method, *words = said.words[1:] or [""]
    values = dict(zip(words[::2], words[1::2], strict=False))
    for checksum in words[len(values) * 2 :]:
        block.leave_out(said, f"{checksum}: nothing here is like it")
    return way_of(method, said.word, values.get("type", ""), values.get("port", ""))


def _put_quorum(table: Table, block: Block) -> None:
    if said := block.take("quorum"):
        table.put("quorum", number(said.value), said.word)
    for name in ("quorum_up", "quorum_down"):
        if said := block.take(name):
            words, user, group = program(said.words[1:])
            table.put(name, words, said.word)
            if user and table.value("quorum_user") not in (None, user):
                block.leave_out(said, f"{user}: both run as one user")
            elif user:
                table.put("quorum_user", user, said.word)
            if group:
                block.leave_out(said, f"{group}: a program runs in its user's own group")


def _server(statement: Statement, outer: _Outer) -> Server:
    block, table = Block(statement.block), Table(statement.word)
    for said_name, name in _NUMBERS.items():
        if said := block.take(said_name):
            put_number(table, name, said.value, said.word)
    if said := block.take("snmp_name"):
        table.put("name", said.value, said.word)
    address, port = _address_and_port(statement)
    server = Server(table, address, port, _forwarding(block, "lvs_method") or outer.way, checks=[])
    times, host = block.times(outer.times), block.take("virtualhost") or outer.host
    for check in block.take_all(*CHECKS):
        asked = Asked(check, times, host, server)
        server.checks += CHECKS[check.name](asked)
        table.left_out += asked.left_out
    if outer.inhibited:
        block.take("inhibit_on_failure")
    table.left_out += block.rest()
    return server


_NUMBERS = {"weight": "weight", "uthreshold": "most_flows", "lthreshold": "fewest_flows"}


def _address_and_port(statement: Statement) -> tuple[str, int | None]:
    words = [*statement.words[1:], "", ""]
    return words[0], port_of(words[1])


def _sorry_server(statement: Statement, way: Way, service: Table) -> Server:
    table = Table(statement.word)
    table.put("backup", True, statement.word)
    below = service.value("quorum") not in (None, 1)
    note = "it serves while no other backend can" + (", not below the quorum" if below else "")
    table.note = f"{note}, and is checked as they are"
    return Server(table, *_address_and_port(statement), way)


READER = Reader("configuration of keepalived", _knows, _read)
