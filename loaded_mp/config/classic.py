"""The classic files, `loaded.config` and `loaded.config6`: shell scripts whose assignments are the settings.

They are never executed. An assignment is `NAME=value` at the beginning of a line, without spaces around `=`;
whatever else is in the script is passed over.
"""

import re
import shlex
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from loaded_mp.config.draft import Draft, Location, Place
from loaded_mp.config.errors import ConfigError, Mistake

Family = Literal[4, 6]

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
#: Names that mean the same in both families' files; those with 4 or 6 in them belong to one.
_COMMON = {
    "NS", "FIRST_CORE", "LAST_CORE", "public_NIC", "private_NIC", "private_GW", "public_GW", "broadcast",
    "nfq_len", "strategy", "port_alive", "check_cycle",
}  # fmt: skip
_STRATEGIES = {"rr": "rr", "wrr": "wrr", "weighted": "wrr"}
_WEIGHT = re.compile(r"weight=(\d+)")


class _File:
    """The assignments of one file."""

    def __init__(self, path: Path, family: Family, text: str) -> None:
        self.path = path
        self.family = family
        self.failover = False
        self.values: dict[str, list[tuple[int, list[str]]]] = {}  #: name -> line and words, as often as given
        self.mistakes: list[Mistake] = []
        known = _COMMON | {f"VIP{family}", f"VIP{family}net", f"RIP{family}", f"server{family}"}
        for number, line in enumerate(text.splitlines(), 1):
            assignment = _ASSIGNMENT.match(line)
            if assignment and assignment[1] in known:
                self._assign(number, assignment[1], assignment[2])
            elif line.split("#")[0].strip() == "failover":
                self.failover = True

    def _assign(self, number: int, name: str, text: str) -> None:
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            self.wrong(number, name, f"found {text!r}, expected closed quotes ({error})")
            return
        if any(c in word for word in words for c in "$`"):
            self.wrong(number, name, f"found {text!r}, expected a plain value: the file is not executed")
        elif not words:
            self.wrong(number, name, "found nothing, expected a value")
        else:
            self.values.setdefault(name, []).append((number, words))

    def place(self, number: int, name: str) -> Place:
        return Place(f"{self.path}:{number}", name)

    def wrong(self, number: int, name: str, text: str) -> None:
        self.mistakes.append(Mistake(f"{self.path}:{number}", name, text))

    def last(self, name: str) -> tuple[int, str] | None:
        """Line and value of a name's last assignment, which is what a shell would go by."""
        if name not in self.values:
            return None
        number, words = self.values[name][-1]
        if len(words) > 1:
            self.wrong(number, name, f"found {' '.join(words)!r}, expected one word")
        return number, words[0]


def read_classic(path: Path, family: Family, failover: bool = False) -> Draft:
    """What a classic file says about one family. Raises ConfigError if it cannot be read.

    `failover` does what the word in the file does: it switches the checks on.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(Mistake(str(path), "", f"cannot be read: {error.strerror}")) from error
    file = _File(path, family, text)
    file.failover = file.failover or failover
    return _draft(file)


def _draft(file: _File) -> Draft:
    draft = Draft({"services": [{"name": f"ipv{file.family}"}], "network": {}}, whole=str(file.path))
    draft.mistakes = file.mistakes

    def put(name: str, location: Location, convert: Callable[[str], Any] = str) -> None:
        if found := file.last(name):
            _set(draft, location, convert(found[1]), file.place(found[0], name))

    family = file.family
    vip_prefix = _prefix(file, f"VIP{family}net")
    backend_prefix = _prefix(file, f"RIP{family}")
    put(f"VIP{family}", ("services", 0, "vips"), lambda value: [value + vip_prefix])
    put("strategy", ("services", 0, "scheduler"), lambda value: _STRATEGIES.get(value, value))
    put("public_NIC", ("network", "public_interface"))
    put("private_NIC", ("network", "private_interface"))
    put("public_GW", ("network", "public_addresses"), lambda value: [value + vip_prefix])
    put("private_GW", ("network", "private_addresses"), lambda value: [value + backend_prefix])
    if family == 4:
        put("broadcast", ("network", "broadcast"))
    put("nfq_len", ("queue_length",))
    put("FIRST_CORE", ("first_queue",))
    put("FIRST_CORE", ("first_core",))
    put("LAST_CORE", ("last_core",))
    _put_backend_network(file, draft)
    _put_workers(draft)
    _put_name_servers(file, draft)
    _put_backends(file, draft)
    _put_check(file, draft)
    return draft


def _set(draft: Draft, location: Location, value: Any, place: Place) -> None:
    target: Any = draft.data
    for part in location[:-1]:
        target = target[part]
    target[location[-1]] = value
    draft.places[location] = place


def _prefix(file: _File, name: str) -> str:
    """`/24` from a network, a netmask or a prefix length; empty if the name is not assigned."""
    found = file.last(name)
    if not found:
        return ""
    text = found[1].rpartition("/")[2] if "/" in found[1] else found[1]
    zero = "0.0.0.0" if file.family == 4 else "::"
    try:
        return f"/{ip_network(f'{zero}/{text}').prefixlen}"
    except ValueError:
        file.wrong(found[0], name, f"found {found[1]!r}, expected a network, a netmask or a prefix length")
        return ""


def _put_backend_network(file: _File, draft: Draft) -> None:
    found = file.last(f"RIP{file.family}")
    if found and "/" in found[1] and not found[1].startswith("/"):
        place = file.place(found[0], f"RIP{file.family}")
        _set(draft, ("network", "backend_networks"), [found[1]], place)


def _put_workers(draft: Draft) -> None:
    first, last = draft.data.get("first_core", ""), draft.data.get("last_core", "")
    if first.isdecimal() and last.isdecimal() and int(last) >= int(first):
        draft.data["workers"] = int(last) - int(first) + 1
        draft.places[("workers",)] = draft.places[("last_core",)]


def _put_name_servers(file: _File, draft: Draft) -> None:
    servers = [(number, word) for number, words in file.values.get("NS", ()) for word in words]
    if servers:
        draft.data["network"]["name_servers"] = [word for _, word in servers]
        for row, (number, _) in enumerate(servers):
            draft.places[("network", "name_servers", row)] = file.place(number, "NS")


def _put_backends(file: _File, draft: Draft) -> None:
    name = f"server{file.family}"
    backends: list[dict[str, str]] = []
    for number, words in file.values.get(name, ()):
        backend = {"address": words[0]}
        for word in words[1:]:
            weight = _WEIGHT.fullmatch(word)
            if weight:
                backend["weight"] = weight[1]
            else:
                file.wrong(number, name, f"found {word!r} after the address, expected weight=N")
        draft.places["services", 0, "backends", len(backends)] = file.place(number, name)
        backends.append(backend)
    draft.data["services"][0]["backends"] = backends


def _put_check(file: _File, draft: Draft) -> None:
    if not file.failover:
        return
    draft.data["services"][0]["check"] = check = {}
    draft.places["services", 0, "check"] = Place(str(file.path), "port_alive")
    for name, key in (("port_alive", "port"), ("check_cycle", "interval_s")):
        if found := file.last(name):
            check[key] = found[1]
            draft.places["services", 0, "check", key] = file.place(found[0], name)
