"""The classic files, `loaded.config` and `loaded.config6`: shell scripts whose assignments are the settings.

They are never executed. An assignment is `NAME=value` at the beginning of a line, without spaces around `=`.
A shell would go by the last assignment of a name, and so does this reader; `server4`, `server6` and `NS` may
be repeated. `VIP4` and `VIP6` must not, as the second would look like one more. Rules that send packets to
the queue say what is answered (`queue_rules.py`). Whatever else is in the script is passed over, but for a
name that is almost one of these: unless the script itself uses it as `$NAME`, it is a mistake.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.config.draft import Draft, Location, Place, explained, found
from loaded_mp.config.errors import Mistake
from loaded_mp.config.file import read_file
from loaded_mp.config.queue_rules import EVERYTHING, Script, is_queue_rule, listeners

Family = Literal[4, 6]

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\s*)=(.*)")
#: Names that mean the same in both families' files; those with 4 or 6 in them belong to one.
_COMMON = {
    "NS", "FIRST_CORE", "LAST_CORE", "public_NIC", "private_NIC", "private_GW", "public_GW", "broadcast",
    "nfq_len", "strategy", "port_alive", "check_cycle",
}  # fmt: skip
_FAMILY = ("VIP{}", "VIP{}net", "RIP{}", "server{}")
_FAILOVER = "failover"
#: How like a name another has to be to be taken for it, from 0 to 1: servre4 is 0.86 server4, NS1 0.8 NS.
_ALIKE = 0.82
_LONGEST_NAME = 20
_STRATEGIES = {"rr": "rr", "wrr": "wrr", "weighted": "wrr"}
_WEIGHT = re.compile(r"weight=(.*)")


class _File:
    """The assignments of one file that concern one family."""

    def __init__(self, path: Path, family: Family, text: str) -> None:
        self.path = path
        self.family = family
        self.failover: Place | None = None  #: where checks and discovery are switched on
        self.values: dict[str, list[tuple[int, list[str]]]] = {}  #: name -> line and words, as often as given
        self.queue_rules: list[tuple[int, str]] = []  #: line and text
        self.mistakes: list[Mistake] = []
        self._text = text
        known = _names(family)
        for number, line in _lines(text):
            assignment = _ASSIGNMENT.match(line)
            if assignment and assignment[1] in known:
                self._assign(number, *assignment.groups())
            elif line.split("#")[0].strip() == _FAILOVER:
                self.failover = self.place(number, _FAILOVER)
            elif is_queue_rule(line):
                self.queue_rules.append((number, line))
            else:
                self._suspect(number, line)

    def _assign(self, number: int, name: str, space: str, text: str) -> None:
        try:
            # Quotes may hold several words, as in NS="192.0.2.53 192.0.2.54".
            words = [word for quoted in shlex.split(text, comments=True) for word in quoted.split()]
        except ValueError:
            self.wrong(number, name, f"found {found(text)}, expected closed quotes")
            return
        if any(c in word for word in words for c in "$`"):
            self.wrong(number, name, f"found {found(text)}, expected a plain value: nothing here is executed")
        elif space or text[:1].isspace():
            self.wrong(number, name, f"found a space beside =, expected {name}=VALUE")
        elif not words:
            self.wrong(number, name, "found nothing, expected a value")
        elif name in self.values and name == f"VIP{self.family}":
            text = f"found again, expected it once: it is in line {self.values[name][0][0]} already"
            self.wrong(number, name, f"{text}; several VIPs are for TOML, see 'loaded-mp convert'")
        else:
            self.values.setdefault(name, []).append((number, words))

    def _suspect(self, number: int, line: str) -> None:
        """Say so if a line that is passed over is almost one that counts."""
        assignment = _ASSIGNMENT.match(line)
        code, _, _ = line.partition("#")
        name, *others = assignment.groups() if assignment else code.split() or [""]
        if name.lower() == _FAILOVER and others:
            self.wrong(number, name, f"found {found(code.strip())}, expected the word {_FAILOVER} alone")
        elif assignment:
            known = name in _names(4) | _names(6)
            meant = "" if known else _meant(name, _names(self.family))
            if meant and not self._uses(name):
                self.wrong(number, name, f"no such name, did you mean {meant}?")
        elif not others and (meant := _meant(name, {_FAILOVER})):
            self.wrong(number, name, f"no such word, did you mean {meant}?")

    def _uses(self, name: str) -> bool:
        """Whether it is a variable of the script itself."""
        return re.search(rf"\$\{{?{name}\b", self._text) is not None

    def place(self, number: int, name: str) -> Place:
        return Place(f"{self.path}:{number}", name)

    def wrong(self, number: int, name: str, text: str) -> None:
        self.mistakes.append(Mistake(f"{self.path}:{number}", name, text))

    def last(self, name: str) -> tuple[int, str] | None:
        """Line and value of a name's last assignment."""
        if name not in self.values:
            return None
        number, words = self.values[name][-1]
        if len(words) > 1:
            self.wrong(number, name, f"found {found(' '.join(words))}, expected one word")
        return number, words[0]

    def of_family(self, name: str) -> list[tuple[int, str]]:
        """Lines and words of a name that holds addresses; what is of the other family is the other's."""
        assigned = [(number, word) for number, words in self.values.get(name, ()) for word in words]
        return [each for each in assigned if not self.is_foreign(each[1])]

    def is_foreign(self, word: str) -> bool:
        """Whether a word is an address of the other family."""
        try:
            return ip_address(word.partition("/")[0]).version != self.family
        except ValueError:
            return False


def _names(family: Family) -> set[str]:
    """The names that concern one family."""
    return _COMMON | {name.format(family) for name in _FAMILY}


def _meant(word: str, names: set[str]) -> str:
    """Which of the names a word is almost, or nothing."""
    small = {name.lower(): name for name in names}
    like = get_close_matches(word.lower(), small, 1, _ALIKE) if len(word) <= _LONGEST_NAME else []
    return "".join(small[each] for each in like)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line with its number; one that goes on after a backslash is one."""
    begun = ""
    for number, line in enumerate(text.split("\n"), 1):
        begun += line
        if "#" not in begun and begun.endswith("\\"):
            begun = begun[:-1]
            continue
        yield number, begun
        begun = ""
    if begun:
        yield number, begun


def read_classic(path: Path, family: Family, failover: bool = False) -> Draft:
    """What a classic file says about one family. Raises ConfigError if it cannot be read.

    `failover` does what the word in the file does: it switches checks and discovery on.
    """
    text = read_file(path).decode(errors="surrogateescape").replace("\r\n", "\n")
    file = _File(path, family, text)
    if failover and not file.failover:
        file.failover = Place("-f", "")
    return _draft(file)


def _draft(file: _File) -> Draft:
    family = file.family
    draft = Draft({"services": [{"name": f"ipv{family}"}], "network": {}}, whole=str(file.path))
    draft.mistakes = file.mistakes
    for name, key in (("VIP", "vips"), ("server", "backends")):
        draft.places["services", 0, key] = Place(str(file.path), f"{name}{family}")

    def put(name: str, location: Location, convert: Callable[[str], Any] = str) -> None:
        if assigned := file.last(name):
            _set(draft, location, convert(assigned[1]), file.place(assigned[0], name))

    put("public_NIC", ("network", "public_interface"))
    put("private_NIC", ("network", "private_interface"))
    _put_broadcast(file, draft)
    put("nfq_len", ("queue_length",))
    put("FIRST_CORE", ("first_queue",))
    put("FIRST_CORE", ("first_core",))
    put("LAST_CORE", ("last_core",))
    _put_strategy(file, draft)
    _put_vip(file, draft)
    _put_addresses(file, draft)
    _put_workers(draft)
    _put_backends(file, draft)
    _put_check(file, draft)
    _put_discovery(file, draft)
    _put_listen(file, draft)
    return draft


def _set(draft: Draft, location: Location, value: Any, place: Place) -> None:
    target: Any = draft.data
    for part in location[:-1]:
        target = target[part]
    target[location[-1]] = value
    draft.places[location] = place


def _put_strategy(file: _File, draft: Draft) -> None:
    if assigned := file.last("strategy"):
        number, value = assigned
        if value in _STRATEGIES:
            draft.data["services"][0]["scheduler"] = _STRATEGIES[value]
        else:
            file.wrong(number, "strategy", f"found {found(value)}, expected rr, weighted or wrr")


def _put_broadcast(file: _File, draft: Draft) -> None:
    """IPv6 has none, but a wrong one is one nevertheless."""
    if not (assigned := file.last("broadcast")):
        return
    number, value = assigned
    if file.family == 4:
        _set(draft, ("network", "broadcast"), value, file.place(number, "broadcast"))
        return
    try:
        IPv4Address(value)
    except ValueError:
        file.wrong(number, "broadcast", f"found {found(value)}, expected an IPv4 address")


def _prefix(file: _File, name: str) -> str:
    """`/24` from a network, a netmask or a prefix length; empty if the name is not assigned."""
    assigned = file.last(name)
    if not assigned:
        return ""
    number, value = assigned
    network: type[IPv4Network | IPv6Network] = IPv4Network if file.family == 4 else IPv6Network
    address, _, length = value.rpartition("/")
    try:
        return f"/{network(f'{address or network(0).network_address}/{length}', strict=False).prefixlen}"
    except ValueError:
        file.wrong(number, name, f"found {found(value)}, expected a network, a netmask or a prefix length")
        return ""


def _put_vip(file: _File, draft: Draft) -> None:
    name = f"VIP{file.family}"
    prefix = _prefix(file, f"{name}net")
    if assigned := file.last(name):
        number, value = assigned
        draft.places["services", 0, "vips"] = file.place(number, name)
        if not _refused(file, number, name, value):
            draft.data["services"][0]["vips"] = [_with_prefix(value, prefix)]
    _put_of_family(file, draft, "public_GW", "public_addresses", prefix)


def _put_addresses(file: _File, draft: Draft) -> None:
    """What lies on the backends' side."""
    name = f"RIP{file.family}"
    prefix = _prefix(file, name)
    _put_of_family(file, draft, "private_GW", "private_addresses", prefix)
    _put_of_family(file, draft, "NS", "name_servers")
    if prefix and (assigned := file.last(name)):
        number, value = assigned
        _set(
            draft,
            ("network", "backend_networks"),
            _backend_networks(file, value, prefix),
            file.place(number, name),
        )


def _backend_networks(file: _File, value: str, prefix: str) -> list[str]:
    """The network that RIP4 names; if it only gives the length, the one that an address of it lies in."""
    if value.rpartition("/")[0]:
        return [value]
    inside = file.of_family("private_GW")[-1:] or file.of_family(f"server{file.family}")[:1]
    try:
        return [str(ip_interface(_with_prefix(inside[0][1], prefix)).network)] if inside else []
    except ValueError:  # said of the address itself
        return []


def _put_of_family(file: _File, draft: Draft, name: str, key: str, prefix: str | None = None) -> None:
    """Addresses under a name that both families share; the last one, if it takes a prefix length."""
    assigned = file.of_family(name) if prefix is None else file.of_family(name)[-1:]
    if assigned:
        draft.data["network"][key] = [_with_prefix(word, prefix or "") for _, word in assigned]
        for row, (number, _) in enumerate(assigned):
            draft.places["network", key, row] = file.place(number, name)


def _with_prefix(address: str, prefix: str) -> str:
    return address if "/" in address else address + prefix


def _refused(file: _File, number: int, name: str, address: str) -> bool:
    """Whether it is an address of the other family, which is said then."""
    if foreign := file.is_foreign(address):
        file.wrong(number, name, f"found {found(address)}, expected an IPv{file.family} address")
    return foreign


def _put_workers(draft: Draft) -> None:
    first, last = draft.data.get("first_core", ""), draft.data.get("last_core", "")
    try:
        workers = int(last) - int(first) + 1
    except ValueError:  # said of the values themselves
        return
    if workers > 0:
        draft.data["workers"] = workers
        draft.places["workers",] = draft.places["last_core",]


def _put_backends(file: _File, draft: Draft) -> None:
    name = f"server{file.family}"
    backends: list[dict[str, str]] = []
    for number, words in file.values.get(name, ()):
        if _refused(file, number, name, words[0]):
            draft.places["services", 0, "backends"] = file.place(number, name)
            continue
        backend = {"address": words[0]}
        for word in words[1:]:
            weight = _WEIGHT.fullmatch(word)
            if weight:
                backend["weight"] = weight[1]
            else:
                file.wrong(number, name, f"found {found(word)} after the address, expected weight=N")
        draft.places["services", 0, "backends", len(backends)] = file.place(number, name)
        backends.append(backend)
    draft.data["services"][0]["backends"] = backends


def _put_check(file: _File, draft: Draft) -> None:
    """The checks; what is said of them has to be right also while they are off."""
    given = {
        key: (file.place(assigned[0], name), assigned[1])
        for name, key in (("port_alive", "port"), ("check_cycle", "interval_s"))
        if (assigned := file.last(name))
    }
    if not file.failover:
        for key, (place, value) in given.items():
            file.mistakes += [Mistake(place.place, str(place.key), each) for each in _wrong(key, value)]
        return
    draft.data["services"][0]["checks"] = {key: value for key, (_, value) in given.items()}
    draft.places["services", 0, "checks"] = Place(file.failover.place, "port_alive")
    for key, (place, _) in given.items():
        draft.places["services", 0, "checks", key] = place


def _wrong(key: str, value: str) -> list[str]:
    """What is wrong with a setting of the check."""
    try:
        TcpCheck.model_validate({"port": 1, key: value})
    except ValidationError as error:
        return [explained(each) for each in error.errors(include_url=False)]
    return []


def _put_discovery(file: _File, draft: Draft) -> None:
    """With the checks new backends are looked for, once in a cycle, where it is known where."""
    service, network = draft.data["services"][0], draft.data["network"]
    if not ("checks" in service and network.get("private_interface") and network.get("backend_networks")):
        return
    service["discovery"] = {}
    if assigned := file.last("check_cycle"):
        _set(
            draft,
            ("services", 0, "discovery", "interval_s"),
            assigned[1],
            file.place(assigned[0], "check_cycle"),
        )


def _put_listen(file: _File, draft: Draft) -> None:
    """What the script sends to the queue is what is answered; without such rules everything is."""
    variables = {name: words[-1][1][0] for name, words in file.values.items()}
    backends = [words[0] for _, words in file.values.get(f"server{file.family}", ())]
    script = Script(file.family, variables, backends)
    listen: dict[str, int] = {}  #: with its line
    for number, line in file.queue_rules:
        try:
            listen |= {each: number for each in listeners(line, script) if each not in listen}
        except ValueError as error:
            file.wrong(number, "QUEUE", f"{error}; in TOML `listen` says what is answered")
    if listen and EVERYTHING not in listen:
        draft.data["services"][0]["listen"] = list(listen)
        for row, number in enumerate(listen.values()):
            draft.places["services", 0, "listen", row] = file.place(number, "QUEUE")
