"""The output of `ipvsadm -S -n`, and commands of ipvsadm as scripts have them (ipvsadm(8), 1.31).

Without `-n` ports have the names of /etc/services; a name in place of an address is not looked up.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from socket import getservbyname

from loaded_mp.importing.found import Found, Reader, Setting, Table, Word, number
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
from loaded_mp.importing.virtual import Entrance, Server, Virtual, as_name, listening, port_of

#: Long names of options -> short ones.
_SHORT = {
    "--add-service": "-A", "--add-server": "-a", "--edit-service": "-E", "--edit-server": "-e",
    "--delete-service": "-D", "--delete-server": "-d", "--clear": "-C", "--restore": "-R", "--zero": "-Z",
    "--tcp-service": "-t", "--udp-service": "-u", "--fwmark-service": "-f", "--real-server": "-r",
    "--scheduler": "-s", "--persistent": "-p", "--netmask": "-M", "--ops": "-o", "--sched-flags": "-b",
    "--gatewaying": "-g", "--ipip": "-i", "--masquerading": "-m", "--weight": "-w", "--u-threshold": "-x",
    "--l-threshold": "-y", "--ipv6": "-6", "--numeric": "-n",
}  # fmt: skip
_WITH_VALUE = {
    "-t", "-u", "-f", "--sctp-service", "-s", "-M", "-b", "-r", "-w", "-x", "-y", "--pe", "--tun-type",
    "--tun-port",
}  # fmt: skip
_COMMAND = re.compile(
    r"^[ \t]*(?:\S*ipvsadm[ \t]+)?(?:-[AaEeDdCRZ]|--(?:add|edit|delete)-(?:service|server)"
    r"|--(?:clear|restore|zero|set|start-daemon|stop-daemon))(?=\s|$)",
    re.MULTILINE,
)
_PROTOCOLS = {"-t": "tcp", "-u": "udp", "--sctp-service": "sctp", "-f": "mark"}
_METHODS = {"-m": "NAT", "-g": "DR", "-i": "TUN"}
_NUMBERS = {"-w": "weight", "-x": "most_flows", "-y": "fewest_flows"}
_DAEMON = "flows are not shared with another balancer"
_COMMANDS = {
    "-E": "write what it changes into its -A",
    "-e": "write what it changes into its -a",
    "-D": "leave out its -A, too",
    "-d": "leave out its -a, too",
    "-C": "a start begins with what its file says",
    "-R": "the lines that it reads are a file for this command",
    "-Z": "counters only rise; 'loaded-mp status' shows what comes in a second",
    "--start-daemon": _DAEMON,
    "--stop-daemon": _DAEMON,
}
_REASONS = {"--pe": "a client is known by its address only"} | dict.fromkeys(
    ("--tun-csum", "--tun-nocsum", "--tun-remcsum"), "nothing here is like it"
)
_NOT_NUMERIC = "expected ADDRESS:PORT: ipvsadm -S -n writes addresses"


@dataclass(frozen=True)
class _Line:
    """A command."""

    whole: Word
    options: dict[str, str]  #: by their short names, with their values

    def word(self, option: str) -> Word:
        """An option with its value."""
        return Word(self.whole.place, f"{option} {self.options[option]}".rstrip())

    def setting(self, option: str) -> Setting | None:
        """The value of an option, if it is there."""
        return Setting(self.options[option], self.word(option)) if option in self.options else None

    def service(self) -> str:
        """The option that names the service, empty if none does."""
        return next((each for each in _PROTOCOLS if each in self.options), "")


def _knows(text: str) -> bool:
    return _COMMAND.search(text) is not None


def _read(text: str, name: str) -> Found:
    found = Found()
    lines = list(_lines(text, name, found))
    said = [each for each in lines if "--set" in each.options]
    timeouts = _timeouts(said[-1], found) if said else None
    services: dict[tuple[str, str, bool], Virtual] = {}
    for line in lines:
        option = line.service()
        key = (option, line.options.get(option, ""), "-6" in line.options)
        if "--set" in line.options:
            continue
        if command := next((each for each in line.options if each in _COMMANDS), ""):
            found.left_out.append(line.whole.left_out(_COMMANDS[command]))
        elif not option or not ("-A" in line.options or {"-a", "-r"} <= line.options.keys()):
            found.left_out.append(
                line.whole.left_out("expected -A or -a with -r, and -t, -u, -f or --sctp-service")
            )
        elif "-A" in line.options:
            if virtual := _virtual(line, option, timeouts):
                services[key] = virtual
                found.virtuals.append(virtual)
            else:
                found.left_out.append(line.whole.left_out(_NOT_NUMERIC))
        elif key in services:
            services[key].servers.append(_server(line, option))
        else:
            found.left_out.append(line.whole.left_out(f"no -A {line.word(option).text} is carried over"))
    return found


def _lines(text: str, name: str, found: Found) -> Iterator[_Line]:
    for row, line in enumerate(text.split("\n"), 1):
        whole = Word(f"{name}:{row}", " ".join(line.split()))
        if not whole.text or whole.text.startswith("#"):
            continue
        try:
            words = shlex.split(line, comments=True) if _COMMAND.match(line) else []
        except ValueError:  # a quote that is not closed
            words = []
        if words:
            words = words[1:] if words[0].endswith("ipvsadm") else words
            yield _Line(whole, dict(_options(words)))
        else:
            found.left_out.append(whole.left_out("expected a command of ipvsadm, as in -A -t 192.0.2.10:80"))


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values."""
    place = 0
    while place < len(words):
        option, equals, value = words[place].partition("=")
        place += 1
        option = _SHORT.get(option, option)
        if option[:2] in _WITH_VALUE and len(option) > 2 and not equals:  # as in -w3
            option, equals, value = option[:2], "=", option[2:]
        following = words[place : place + (3 if option == "--set" else 1)]
        optional = option == "-p" and bool(following) and following[0].isdecimal()
        if not equals and (option in _WITH_VALUE or optional or option == "--set"):
            value = " ".join(following)
            place += len(following)
        yield option, value


def _timeouts(line: _Line, found: Found) -> Timeouts | None:
    """`--set TCP TCPFIN UDP`."""
    values = line.options["--set"].split()
    if len(values) != 3:
        found.left_out.append(line.whole.left_out("expected three times in seconds"))
        return None
    tcp, tcp_fin, udp = (Setting(number(each), line.word("--set")) for each in values)
    return tcp, tcp_fin, udp


def _virtual(line: _Line, option: str, timeouts: Timeouts | None) -> Virtual | None:
    """The service that -A begins; None if it has no address."""
    protocol, value = _PROTOCOLS[option], line.options[option]
    word = Word(line.whole.place, f"-A {line.word(option).text}{' -6' if '-6' in line.options else ''}")
    table = Table(word)
    if protocol == "mark":
        entrance = Entrance(None, Setting(f"mark/{value}", word), None)
    elif endpoint := _endpoint(value, protocol):
        address, port = endpoint
        ports = (port, port) if port else None
        entrance = Entrance(Setting(address, word), Setting(listening(protocol, ports), word), ports)
    else:
        return None
    if scheduler := line.setting("-s"):
        table.settings["scheduler"] = scheduler
    else:
        table.put("scheduler", "wlc", word, "without -s")
    if flags := line.setting("-b"):
        put_flags(table, flags.value.split(","), flags.word)
    if persistence := line.setting("-p"):
        persistence.value = number(persistence.value) if persistence.value else PERSISTENCE_S
    put_affinity(table, persistence, line.setting("-M"), line.word("-o") if "-o" in line.options else None)
    put_idle_times(table, entrance, persistence, timeouts)
    _name_others(table, line, {"-A", option, "-s", "-b", "-p", "-M", "-o"})
    return Virtual(as_name(service_name(entrance)), table, [entrance], [])


def _server(line: _Line, option: str) -> Server:
    table = Table(line.word("-r"))
    for name, setting in _NUMBERS.items():
        if name in line.options:
            put_number(table, setting, line.options[name], line.word(name))
    method = next((each for each in _METHODS if each in line.options), "")
    kind, port = line.options.get("--tun-type", ""), line.options.get("--tun-port", "")
    kind_word = line.word("--tun-type") if kind else None
    way = way_of(
        _METHODS.get(method, "DR"), line.word(method) if method else table.word, kind, port, kind_word
    )
    if not method:
        way.way.note = "without -m and -i it is -g"
    _name_others(table, line, {"-a", option, "-r", *_NUMBERS, *_METHODS, "--tun-type", "--tun-port"})
    endpoint = _endpoint(line.options["-r"], _PROTOCOLS[option])
    if not endpoint:
        table.refused = _NOT_NUMERIC
    return Server(table, *(endpoint or (line.options["-r"], None)), way)


def _name_others(table: Table, line: _Line, read: set[str]) -> None:
    """Name the options that were not read."""
    for option in line.options:
        if option not in read | {"-6", "-n"}:
            table.left_out.append(line.word(option).left_out(_REASONS.get(option, "there is no such option")))


def _endpoint(text: str, protocol: str) -> tuple[str, int | None] | None:
    """Address and port of `ADDRESS[:PORT]` or `[ADDRESS]:PORT`; None if it has a name that is no port's."""
    found = re.fullmatch(r"\[(.*)\](?::(.*))?|([^:]*)(?::([^:]*))?", text)
    bracketed, its_port, plain, port = found.groups("") if found else ("", "", text, "")
    address, port_text = bracketed or plain, its_port or port or "0"
    try:
        ip_address(address)
        if port_text == "0":
            return address, None
        return address, port_of(port_text) or getservbyname(port_text, "udp" if protocol == "udp" else "tcp")
    except (OSError, ValueError):  # no address; no such name
        return None


READER = Reader("output of ipvsadm -S", _knows, _read)
