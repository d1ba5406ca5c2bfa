"""A service as all readers have it, and what becomes of it here: one or several services of ours.

What others say of each backend and is the service's here (ports, checks, the way of forwarding) is agreed on.
"""

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loaded_mp.checks import CHECKS
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.importing.found import Setting, Table, live
from loaded_mp.memory.snapshot import MAX_BACKENDS

_CHECK_SETTINGS = {str(each.model_fields["type"].default): set(each.model_fields) for each in CHECKS}

Ports = tuple[int, int]  #: first and last


class Way(NamedTuple):
    """How packets come to a backend."""

    way: Setting
    tunnel: Setting | None = None  #: of which kind, where it is not the usual one

    @property
    def key(self) -> tuple[Any, Any]:
        """The same for the same ways."""
        return self.way.value, self.tunnel and self.tunnel.value


@dataclass
class Server:
    """A backend as a file has it."""

    table: Table
    address: str
    port: int | None = None  #: None: that which the client asked for
    forwarding: Way | None = None
    checks: list[Table] = field(default_factory=list)
    with_range: bool = False  #: the port is that of a range's first one

    @property
    def refused(self) -> str:
        """Why it is left out, as of its table."""
        return self.table.refused


class Entrance(NamedTuple):
    """An address, and what is answered there."""

    vip: Setting | None  #: None: the file names no address
    listen: Setting
    ports: Ports | None  #: None: all of them, or none


@dataclass
class Virtual:
    """A service as a file has it, perhaps with other ports on each of its addresses."""

    name: str
    table: Table
    entrances: list[Entrance]
    servers: list[Server]


def port_of(text: str) -> int | None:
    """A port's number; None if it is none, or 0."""
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) <= 65_535 else None


def listening(protocol: str, ports: Ports | None) -> str:
    """As the model has it: `tcp`, `tcp/80` or `tcp/80-90`."""
    if ports is None:
        return protocol
    return f"{protocol}/{ports[0]}" if ports[0] == ports[1] else f"{protocol}/{ports[0]}-{ports[1]}"


def as_name(text: str) -> str:
    """A name that the model takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in text)[:50] or "service"


def services(virtual: Virtual, vips: list[Setting]) -> Iterator[Table]:
    """The services that come of it: addresses on which the same is answered share one.

    `vips` are those of entrances that name no address, if a backend is of their family.
    """
    answered: dict[str, list[Entrance]] = {}
    families = {":" in server.address for server in virtual.servers}
    own: list[Setting | None] = [vip for vip in vips if (":" in vip.value) in families] or [None]
    for entrance in virtual.entrances:
        for vip in [entrance.vip] if entrance.vip else own:
            answered.setdefault(vip.value if vip else "", []).append(entrance._replace(vip=vip))
    # A backend's own port stands for those of one listener.
    together = all(server.port is None for server in virtual.servers)
    groups: dict[tuple[str, ...], list[Entrance]] = {}
    for entrances in answered.values():
        listens = tuple(dict.fromkeys(each.listen.value for each in entrances))
        for each in entrances:
            groups.setdefault(listens if together else (each.listen.value,), []).append(each)
    if (needed := len(groups) * len(virtual.servers)) > MAX_BACKENDS:
        why = f"it needs {needed:,} backends, there is room for {MAX_BACKENDS:,}"
        yield Table(virtual.table.word, refused=why)
        return
    for group in groups.values():
        yield _service(deepcopy(virtual), deepcopy(group))


def _service(virtual: Virtual, entrances: list[Entrance]) -> Table:
    table, servers = virtual.table, virtual.servers
    table.put("name", virtual.name, table.word)
    table.settings["vips"] = list({each.vip.value: each.vip for each in entrances if each.vip}.values())
    table.settings["listen"] = list({each.listen.value: each.listen for each in entrances}.values())
    table.advice["vips"] = "it names no address: say which by --vip ADDRESS"
    ports = list(dict.fromkeys(each.ports for each in entrances))
    for server in servers:
        _put_address(server, ports)
    _agree_on_forwarding(table, servers)
    _agree_on_checks(table, live(servers), ports[0][0] if ports[0] else None)
    if servers and all(server.table.value("weight") == 0 for server in servers):
        table.put("all_zero", True, table.word, "every weight is 0")
    table.tables["backends"] = [server.table for server in servers]
    return table


def _put_address(server: Server, ports: list[Ports | None]) -> None:
    """With a port behind it where that is another one than the client's, and it counts."""
    server.table.put("address", server.address, server.table.word)
    if _stays(server):
        return
    if server.port is not None and ports != [(server.port, server.port)]:
        if any(each and each[0] != each[1] for each in ports) and not server.with_range:
            server.table.refused = "all ports of a range go to one there: have a service for each port"
        _put_port(server, server.port)


def _stays(server: Server) -> bool:
    """Whether it answers on the port that the client asks for."""
    way = server.forwarding and FORWARDINGS.get(server.forwarding.way.value)
    return bool(way and way.ports_stay)


def _put_port(server: Server, port: int) -> None:
    address = server.address
    text = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    server.table.put("address", text, server.table.word)


def _agree_on_forwarding(table: Table, servers: list[Server]) -> None:
    """That of the first backend; others are left out."""
    if not servers or not (first := servers[0].forwarding):
        return
    table.settings["forwarding"] = first.way
    if first.tunnel:
        table.settings["tunnel"] = first.tunnel
    for server in servers:
        if (other := server.forwarding) and other.key != first.key and not server.refused:
            why = f"{other.way.word.text!r}, its service {first.way.word.text!r}"
            server.table.refused = f"{why}: have a service for each way"


def _agree_on_checks(table: Table, servers: list[Server], first_port: int | None) -> None:
    """Those that most backends have; others are left out."""
    keys = [_key(server, first_port) for server in servers]
    common = next((key for key, _ in Counter(keys).most_common() if key), "")
    if not common:
        return
    first = keys.index(common)
    checks = table.tables["checks"] = servers[first].checks
    # A backup that is not asked there is asked here, where it answers.
    asked = [
        each for each, key in zip(servers, keys, strict=True) if key in (common, "") and not _stays(each)
    ]
    alike = [each for each, key in zip(servers, keys, strict=True) if key == common]
    _put_check_port(checks, asked or alike, first_port)
    for place, server in enumerate(servers):
        if place == first:
            continue
        server.table.left_out += [each for check in server.checks for each in check.left_out]
        if keys[place] not in (common, ""):
            why = "all backends of a service are asked in the same way: have a service for each"
            server.table.left_out += [check.word.left_out(why) for check in server.checks]
        elif not (server.checks or server.table.note):
            server.table.note = "not checked there; here it is, as the others are"


def _put_check_port(checks: list[Table], servers: list[Server], first_port: int | None) -> None:
    """Where a check is for the servers' own ports: the one that all have, or none, and each says its own."""
    asking = [each for each in checks if "port" in _CHECK_SETTINGS[each.value("type")]]
    asking = [each for each in asking if "port" not in each.settings]
    own = {each.port or first_port for each in servers}
    if len(own) == 1 and (port := own.pop()):
        for check in asking:
            check.put("port", port, check.word)
    elif asking:
        for server in servers:
            if port := server.port or first_port:
                _put_port(server, port)


def _key(server: Server, first_port: int | None) -> str:
    """The same text for the same checks, empty for none; a port that is the server's own is no setting."""
    for check in server.checks:
        if check.value("port") == (server.port or first_port):
            check.settings.pop("port", None)
    plain: list[Any] = [each.plain() for each in server.checks]
    return json.dumps(plain, sort_keys=True, default=str) if plain else ""
