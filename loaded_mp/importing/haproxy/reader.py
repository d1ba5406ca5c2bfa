"""Configuration of HAProxy: listen, frontend and backend sections of `mode tcp` (configuration.txt, 2.6).

A frontend and its default backend are a service. Sections of another mode are left out whole.
"""

import math
import re
from collections.abc import Iterator
from ipaddress import ip_address

from loaded_mp.importing.found import Found, Reader, Setting, Table, Word, number
from loaded_mp.importing.haproxy.checks import Checks
from loaded_mp.importing.haproxy.reasons import (
    BIND_REASONS,
    BIND_VALUES,
    CONTENT,
    OWN,
    SECTIONS,
    SERVER_REASONS,
    SERVER_VALUES,
    TABLE_REASONS,
    TABLE_VALUES,
)
from loaded_mp.importing.haproxy.sections import INHERITED, SECTION, Line, Section, sections
from loaded_mp.importing.haproxy.values import (
    Words,
    address_and_port,
    is_address,
    seconds,
    time_of,
    whole,
    words_behind,
)
from loaded_mp.importing.virtual import Entrance, Ports, Server, Virtual, as_name, listening, port_of

_PROXIES = ("listen", "frontend", "backend")
_SCHEDULERS = {
    "roundrobin": "wrr",
    "static-rr": "wrr",
    "leastconn": "wlc",
    "random": "twos",
    "random(2)": "twos",
}
_SOURCE = re.compile(r"src(?:,ipmask\((\d+)(?:,(\d+))?\))?")


def _knows(text: str) -> bool:
    return SECTION.search(text) is not None


def _read(text: str, name: str) -> Found:
    all_sections, wrong = sections(text, name)
    found = Found(left_out=wrong)
    backends = {each.name: each for each in all_sections if each.kind in ("backend", "listen")}
    used: set[str] = set()
    for section in all_sections:
        if section.kind == "defaults":
            section.all(*INHERITED)
            found.left_out += section.rest()
        elif section.kind not in _PROXIES:
            found.left_out.append(
                section.word.left_out(SECTIONS.get(section.kind, "nothing here is like it"))
            )
        elif section.kind != "backend":
            back = section
            if section.kind == "frontend":
                used.add(section.value("default_backend"))
                back = backends.get(section.value("default_backend"), section)
            if why := _not_carried(section, back):
                found.left_out.append(section.word.left_out(why))
            else:
                found.virtuals.append(_virtual(section, back))
    for section in all_sections:
        if section.kind == "backend" and section.name not in used:
            why = _mode(section) or "no frontend has it as its default_backend"
            found.left_out.append(section.word.left_out(why))
    return found


def _mode(section: Section) -> str:
    """Why a section's mode keeps it from being carried over, or nothing."""
    mode = section.value("mode", "tcp")
    return "" if mode == "tcp" else f"mode {mode}: packets are balanced, not requests; have it in mode tcp"


def _not_carried(front: Section, back: Section) -> str:
    """Why both are left out, or nothing."""
    if why := _mode(front):
        return why
    if why := _mode(back):
        return f"its backend {back.name} has {why}"
    if front.all("disabled") or back.all("disabled"):
        return "it is disabled"
    if tls := [each for each in front.all("bind") if "ssl" in each.values]:
        return f"TLS ends in HAProxy ({tls[0].word.text}): let it end in the backends"
    if front is back and front.kind == "frontend":
        return "it has no default_backend that is here"
    return "" if back.all("server") else "it has no server"


def _virtual(front: Section, back: Section) -> Virtual:
    table = Table(front.word)
    for section in (front, back):
        section.all("mode", "default_backend", "default-server", "option allbackups")
    entrances = [each for line in front.all("bind") for each in _entrances(line, table)]
    _put_scheduler(table, back)
    _put_idle_times(table, front, back)
    _put_affinity(table, back)
    common: Words = {}
    for line in back.all("default-server") or filter(None, [back.last("default-server")]):
        common = words_behind(line.values, line.word.place, SERVER_VALUES, common)
    checks = Checks(back)
    table.left_out += checks.left_out
    if (connect := back.last("timeout connect")) and not back.last("timeout check"):
        table.left_out.append(connect.word.left_out(OWN))
    ports = list(dict.fromkeys(each.ports for each in entrances))
    lines = back.all("server")
    said = [words_behind(each.values[2:], each.word.place, SERVER_VALUES, common) for each in lines]
    _put_common(table, said)
    servers = [_server(line, words, ports, checks) for line, words in zip(lines, said, strict=True)]
    backups = [each for each in servers if each.table.value("backup")]
    for each in backups if len(backups) > 1 and not back.last("option allbackups") else []:
        each.table.note = "without option allbackups one backup serves at a time there; here all do"
    table.left_out += front.rest() + (back.rest() if back is not front else [])
    return Virtual(as_name(front.name), table, entrances, servers)


def _entrances(line: Line, table: Table) -> Iterator[Entrance]:
    """`ADDRESS:PORT[,...] [WORD...]`."""
    places, *words = line.values or [""]
    for name, (_, word) in words_behind(words, line.word.place, BIND_VALUES, {}).items():
        if name not in ("name", "id", "v4v6", "v6only"):
            table.left_out.append(word.left_out(BIND_REASONS.get(name, OWN)))
    for place in places.split(","):
        address, port = address_and_port(place)
        first_text, dash, last_text = port.partition("-")
        first = port_of(first_text)
        last = port_of(last_text) if dash else first
        anywhere = address in ("", "*")
        if not (first and last and (anywhere or is_address(address))):
            table.left_out.append(line.word.left_out(f"{place}: expected ADDRESS:PORT"))
            continue
        anywhere = anywhere or ip_address(address).is_unspecified
        vip = None if anywhere else Setting(address, line.word)
        yield Entrance(vip, Setting(listening("tcp", (first, last)), line.word), (first, last))


def _put_scheduler(table: Table, back: Section) -> None:
    """Who gets a connection, and with `balance source` also the next ones of its client."""
    line, hash_type = back.last("balance"), back.last("hash-type")
    kind = back.value("balance", "roundrobin")
    word = line.word if line else table.word
    if kind == "source":
        consistent = hash_type and hash_type.values[:1] == ["consistent"]
        table.put("scheduler", "mh" if consistent else "sh", hash_type.word if hash_type else word)
        table.put("affinity", "source", word)
        return
    if kind in _SCHEDULERS:
        table.put("scheduler", _SCHEDULERS[kind], word, "" if line else "without balance")
    elif line:
        why = "fo and ovf are the nearest of our schedulers" if kind == "first" else CONTENT
        table.left_out.append(line.word.left_out(f"{why}; see scheduler"))
    if hash_type:
        table.left_out.append(hash_type.word.left_out("only balance source goes by a hash"))
    table.put("affinity", "connection", word, "each connection goes by itself")


def _put_idle_times(table: Table, front: Section, back: Section) -> None:
    """How long a silent connection is kept: `timeout tunnel`, else as long as one side waits."""
    silent = [(front, "timeout client"), (back, "timeout server")]
    if back.last("timeout tunnel"):
        silent = [(back, "timeout tunnel")]
    ended = [(front, "timeout client-fin"), (back, "timeout server-fin")]
    for name, lines in (("tcp_idle_s", silent), ("tcp_fin_idle_s", ended)):
        times = [(time_s, *each) for each in lines if (time_s := time_of(*each)) is not None]
        if not times:
            continue
        time_s, section, key = max(times, key=lambda each: each[0] or math.inf)
        word = line.word if (line := section.last(key)) else table.word
        if time_s:
            table.put(name, whole(time_s), word)
        else:
            table.left_out.append(word.left_out(f"it is without an end there; say {name}"))


def _put_affinity(table: Table, back: Section) -> None:
    """A client that sticks has its backend as long as the table says, and as its connections are kept."""
    for line in back.all("stick on", "stick match", "stick store-request"):
        if found := _SOURCE.fullmatch(line.values[0] if line.values else ""):
            prefixes = "".join(f"/{part}" for part in found.groups() if part)
            table.put("affinity", f"source{prefixes}", line.word)
        else:
            table.left_out.append(line.word.left_out("only the client's address (src) counts here"))
    for line in back.all("stick-table"):
        if table.value("affinity") == "connection":
            table.left_out.append(line.word.left_out("nothing here counts by it"))
            continue
        for name, (value, word) in words_behind(line.values, line.word.place, TABLE_VALUES, {}).items():
            expire_s = seconds(value)
            if name != "expire" or isinstance(expire_s, str):
                if name != "type":
                    table.left_out.append(word.left_out(TABLE_REASONS.get(name, "nothing here counts by it")))
            elif expire_s > (table.value("tcp_idle_s") or 0):
                table.put("tcp_idle_s", whole(expire_s), word)


def _put_common(table: Table, servers: list[Words]) -> None:
    """What servers say and is the service's here: taken out of their words where all say the same."""
    for said_name, name in (("slowstart", "slow_start_s"), ("on-marked-down", "on_down")):
        said = [each.pop(said_name, ("", table.word)) for each in servers]
        values = {value for value, _ in said}
        if values == {""}:
            continue
        word = next(word for value, word in said if value)
        if len(values) > 1:
            why = f"{name} is the service's: say it of all servers, or none"
            table.left_out += [word.left_out(why) for value, word in said if value]
        else:
            time_s = seconds(*values)
            rising = time_s if isinstance(time_s, str) else whole(time_s)
            table.put(name, rising if name == "slow_start_s" else "reset", word)


def _server(line: Line, said: Words, ports: list[Ports | None], checks: Checks) -> Server:
    """`server NAME ADDRESS[:PORT] [WORD...]`; each word that is read is taken out."""
    name, place, *_ = [*line.values, "", ""]
    table = Table(Word(line.word.place, " ".join(line.words[:3])))
    table.put("name", name, table.word)
    address, port = address_and_port(place)
    server = Server(table, address, port_of(port))
    if port[:1] in ("+", "-") and port_of(port[1:]) and len(ports) == 1 and ports[0]:
        server.port, server.with_range = ports[0][0] + int(port), True
    if not is_address(address) or (port and port != "0" and server.port is None):
        table.refused = "expected ADDRESS:PORT: addresses are not looked up by name"
    if "ssl" in said:
        table.refused = (
            table.refused or "HAProxy speaks TLS to it, which packets cannot: let clients speak it"
        )
    server.checks = list(checks.of(said))
    for word_name, setting, read in (
        ("weight", "weight", number),
        ("maxconn", "most_flows", number),
        ("addr", "check_address", str),
    ):
        if word_name in said:
            value, word = said.pop(word_name)
            table.put(setting, read(value), word)
    if "disabled" in said:
        table.put("weight", 0, said.pop("disabled")[1], "'loaded-mp weight' changes it")
    if "backup" in said:
        table.put("backup", True, said.pop("backup")[1])
    for word_name, (_, word) in said.items():
        if word_name not in ("ssl", "enabled"):
            table.left_out.append(word.left_out(SERVER_REASONS.get(word_name, OWN)))
    return server


READER = Reader("configuration of HAProxy", _knows, _read)
