"""The checks of keepalived as ours."""

import shlex
from collections.abc import Callable, Iterator

from loaded_mp.config.errors import Mistake
from loaded_mp.importing.found import Table, Word, number
from loaded_mp.importing.keepalived.reasons import REASONS
from loaded_mp.importing.keepalived.statements import Block, Statement
from loaded_mp.importing.virtual import Server

_REGEX_OPTIONS = {"caseless": "i", "multiline": "m", "dotall": "s", "ungreedy": "U"}


class Asked:
    """One check of a real server while it is read."""

    def __init__(
        self, statement: Statement, outer: dict[str, Statement], host: Statement | None, server: Server
    ) -> None:
        """`outer` and `host`: how it is timed, and the virtual host, where it does not say so itself."""
        self.word = statement.word
        self.block = Block(statement.block)
        self.times = self.block.times(outer)
        self.host = host
        self.server = server
        self.left_out: list[Mistake] = []  #: where no check comes of it

    def table(self, kind: str, *, retry: int = 1, pause: str = "1") -> Table:
        """A check with what all have; `retry` and `pause` are keepalived's, where nothing is said."""
        table = Table(self.word)
        table.put("type", kind, table.word)
        if said := self.block.take("connect_port"):
            table.put("port", number(said.value), said.word)
        if said := self.block.take("connect_ip"):
            self.ask(said)
        self._put_time(table, "interval_s", "delay_loop", "60")
        self._put_time(table, "timeout_s", "connect_timeout", "5")
        table.put("rise", 1, table.word, "keepalived's")
        said = self.times.get("retry")
        retries = number(said.value) if said else retry
        failures = retries + 1 if isinstance(retries, int) else retries
        if said:
            table.put("fall", failures, said.word, "the first failure counts, too")
        else:
            table.put("fall", failures, table.word, "keepalived's retry")
        if retries != 0:
            self._put_time(table, "fast_interval_s", "delay_before_retry", pause)
        return table

    def _put_time(self, table: Table, name: str, said_name: str, default: str) -> None:
        if said := self.times.get(said_name):
            table.put(name, number(said.value), said.word)
        elif default:
            table.put(name, number(default), table.word, f"keepalived's {said_name}")

    def ask(self, said: Statement) -> None:
        """Ask another address than the backend's."""
        if said.value != self.server.address:
            self.server.table.put("check_address", said.value, said.word)

    def read(self, table: Table) -> Table:
        """The check, once all is read: what is left of its block is named."""
        table.left_out += self.block.rest()
        return table


def _tcp(asked: Asked) -> Iterator[Table]:
    yield asked.read(asked.table("tcp"))


def _ping(asked: Asked) -> Iterator[Table]:
    yield asked.read(asked.table("icmp"))


def _smtp(asked: Asked) -> Iterator[Table]:
    table = asked.table("smtp")
    hosts = asked.block.take_all("host")
    for first in hosts[:1]:
        host = Block(first.block)
        if said := host.take("connect_ip"):
            asked.ask(said)
        if said := host.take("connect_port"):
            table.put("port", number(said.value), said.word)
        table.left_out += host.rest()
    for other in hosts[1:]:
        inside = "; ".join(each.word.text for each in other.block)
        word = Word(other.word.place, f"{other.word.text} {{ {inside} }}")
        why = "one address is asked for each backend: have another check with address"
        table.left_out.append(word.left_out(why))
    yield asked.read(table)


def _dns(asked: Asked) -> Iterator[Table]:
    delay = asked.times.get("delay_loop")
    table = asked.table("dns", retry=3, pause=delay.value if delay else "")
    for said_name, name, default in (("name", "name", "."), ("type", "record", "SOA")):
        said = asked.block.take(said_name)
        table.put(name, said.value if said else default, said.word if said else table.word)
    yield asked.read(table)


def _misc(asked: Asked) -> Iterator[Table]:
    table = asked.table("command", retry=0)
    path, timeout = asked.block.take("misc_path"), asked.block.take("misc_timeout")
    words, *_ = program(path.words[1:] if path else [])
    run = ["{address}" if each == asked.server.address else each for each in words]
    table.put("run", run, path.word if path else table.word)
    if timeout:
        table.put("timeout_s", number(timeout.value), timeout.word)
    else:
        table.put("timeout_s", table.value("interval_s"), table.word, "keepalived's misc_timeout")
    if user := asked.block.take("user"):
        table.put("user", " ".join(user.words[1:2]), user.word)
        for group in user.words[2:]:
            asked.block.leave_out(user, f"{group}: a program runs in its user's own group")
    else:
        table.note = "it runs as nobody: say user, if it needs another"
    if dynamic := asked.block.flag("misc_dynamic"):
        table.put("weighted", True, dynamic.word)
    yield asked.read(table)


def _udp(asked: Asked) -> Iterator[Table]:
    payload, reply = asked.block.take("payload"), asked.block.take("require_reply")
    if not (payload and reply):
        why = "silence is a fault: say what is asked by payload, and require_reply"
        asked.left_out.append(asked.word.left_out(why))
        return
    table = asked.table("udp")
    try:
        table.put("send", bytes.fromhex(_hex(payload.value)).decode("latin-1"), payload.word)
        if reply.value:
            table.put("expect", _pattern(_hex(reply.value)), reply.word)
    except ValueError:
        asked.left_out.append(
            payload.word.left_out("expected bytes in hexadecimal here, and in require_reply")
        )
        return
    yield asked.read(table)


def _hex(text: str) -> str:
    """keepalived's free format: two digits are a byte, and one that is left over is one, too."""
    return "".join(run if len(run) % 2 == 0 else f"{run[:-1]}0{run[-1]}" for run in text.lower().split())


def _pattern(text: str) -> str:
    """A regular expression for bytes in hexadecimal, in which x is any digit. Raises ValueError."""
    return "(?s)^" + "".join(_byte(text[place], text[place + 1]) for place in range(0, len(text), 2))


def _byte(high: str, low: str) -> str:
    highs, lows = (range(16) if each == "x" else [int(each, 16)] for each in (high, low))
    return "[" + "".join(f"\\x{one:x}{other:x}" for one in highs for other in lows) + "]"


def _web(kind: str) -> Callable[[Asked], Iterator[Table]]:
    def pages(asked: Asked) -> Iterator[Table]:
        common = asked.table(kind, pause="3")
        common.put("status", ["200-299"], common.word, "keepalived's status_code")
        sni = asked.block.flag("enable_sni") if kind == "https" else None
        host = asked.block.take("virtualhost") or asked.host
        urls = asked.block.take_all("url")
        asked.read(common)
        for page in urls or [Statement(common.word, ["url"])]:
            yield _page(page, common, host, sni)
            common.left_out = []

    return pages


def _page(page: Statement, common: Table, host: Statement | None, sni: Statement | None) -> Table:
    block = Block(page.block)
    path = block.take("path")
    table = Table(path.word if path else page.word, dict(common.settings), left_out=common.left_out)
    if path:
        table.put("path", path.value, path.word)
    if said := block.take("virtualhost") or host:
        table.put("host", said.value, said.word)
        if sni:
            table.put("server_name", said.value, sni.word)
    if said := block.take("status_code"):
        table.put("status", said.words[1:], said.word)
    _put_expression(table, block)
    table.left_out = table.left_out + block.rest()
    return table


def _put_expression(table: Table, block: Block) -> None:
    pattern, options = block.take("regex"), block.take("regex_options")
    if not pattern:
        return
    if block.flag("regex_no_match"):
        block.leave_out(pattern, REASONS["regex_no_match"])
        return
    letters = ""
    for each in options.words[1:] if options else ():
        letters += _REGEX_OPTIONS.get(each, "")
        if options and each not in _REGEX_OPTIONS:
            block.leave_out(options, f"{each}: RE2 has no such flag")
    table.put("expect", f"(?{letters}){pattern.value}" if letters else pattern.value, pattern.word)


def program(words: list[str]) -> tuple[list[str], str, str]:
    """A program with its words, and whom it runs as: `"PROGRAM WORD..." [USER [GROUP]]`."""
    quoted, user, group = [*words, "", "", ""][:3]
    try:
        return shlex.split(quoted), user, group
    except ValueError:  # a quote that is not closed
        return [quoted], user, group


#: By keepalived's name: what comes of one.
CHECKS: dict[str, Callable[[Asked], Iterator[Table]]] = {
    "TCP_CHECK": _tcp,
    "HTTP_GET": _web("http"),
    "SSL_GET": _web("https"),
    "SMTP_CHECK": _smtp,
    "DNS_CHECK": _dns,
    "MISC_CHECK": _misc,
    "PING_CHECK": _ping,
    "UDP_CHECK": _udp,
}
