"""How HAProxy asks the servers of a backend, as our checks."""

import re
from collections.abc import Iterator
from typing import Any

from loaded_mp.config.errors import Mistake
from loaded_mp.importing.found import Setting, Table, Word, number
from loaded_mp.importing.haproxy.sections import Line, Section
from loaded_mp.importing.haproxy.values import Words, seconds, time_of

_OPTIONS = {"option tcp-check": "tcp", "option httpchk": "http", "option smtpchk": "smtp",
            "option ssl-hello-chk": "tls", "option redis-check": "tcp"}  # fmt: skip
_OVER_TLS = {"tcp": "tls", "http": "https"}
_STEPS = ("connect", "send", "send-binary", "send-lf", "send-binary-lf", "expect", "comment", "set-var",
          "set-var-fmt", "unset-var", "disable-on-404", "send-state")  # fmt: skip
#: What HAProxy means where `inter` is not said.
_INTERVAL_S = 2


class Checks:
    """The checks of a backend's servers."""

    def __init__(self, back: Section) -> None:
        self.left_out: list[Mistake] = []
        self._back = back
        self._option = back.last(*_OPTIONS)
        self._kind = _OPTIONS[self._option.key] if self._option else "tcp"
        self._settings: dict[str, Setting] = {}  #: what is asked, and what is expected
        option = self._option.key.removeprefix("option ") if self._option else ""
        tcp_steps = back.all(*(f"tcp-check {each}" for each in _STEPS))
        http_steps = back.all(*(f"http-check {each}" for each in _STEPS))
        if self._option and option == "httpchk":
            self._read_http(self._option, http_steps)
        elif self._option and option == "tcp-check":
            self._read_tcp(tcp_steps)
        elif self._option and option == "redis-check":
            self._settings["send"] = Setting("PING\r\n", self._option.word)
            self._settings["expect"] = Setting(r"^\+PONG", self._option.word)
        elif self._option and option == "smtpchk" and self._option.values:
            why = "the greeting is waited for, and nothing said but QUIT"
            self.left_out.append(self._option.word.left_out(why))
        unused = (tcp_steps if option != "tcp-check" else []) + (http_steps if option != "httpchk" else [])
        self.left_out += [each.word.left_out("no option of its backend makes use of it") for each in unused]

    def of(self, said: Words) -> Iterator[Table]:
        """The checks of a server, out of whose words it takes what it reads."""
        if "check" in said:
            yield self._check(said)
        if "agent-check" in said:
            yield _agent(said)

    def _check(self, said: Words) -> Table:
        _, word = said.pop("check")
        table = Table(self._option.word if self._option else word)
        encrypted = "ssl" in said or said.pop("check-ssl", None) is not None
        table.put("type", _OVER_TLS.get(self._kind, self._kind) if encrypted else self._kind, table.word)
        table.settings |= self._settings
        interval: Any = _INTERVAL_S
        for name, key in (("inter", "interval_s"), ("fastinter", "fast_interval_s")):
            if name in said:
                text, its_word = said.pop(name)
                table.put(key, seconds(text), its_word)
        interval = table.value("interval_s") or interval
        self._put_timeout(table, interval)
        for name in ("port", "rise", "fall"):
            if name in said:
                text, its_word = said.pop(name)
                table.put(name, number(text), its_word)
        if encrypted:
            _put_tls(table, said, word)
        return table

    def _put_timeout(self, table: Table, interval: Any) -> None:
        """`timeout check` counts from the connection on; without it all has to be done within `inter`."""
        check, connect = time_of(self._back, "timeout check"), time_of(self._back, "timeout connect")
        line = self._back.last("timeout check")
        if check is None or line is None or isinstance(interval, str):
            setting = table.settings.get("interval_s")
            word = setting.word if isinstance(setting, Setting) else table.word
            table.put("timeout_s", interval, word, "" if isinstance(setting, Setting) else "HAProxy's inter")
        else:
            connected = interval if connect is None else min(connect, interval)
            table.put("timeout_s", connected + check, line.word, "with the time to connect")

    def _read_tcp(self, steps: list[Line]) -> None:
        """What is sent, then what is expected: one question."""
        sent, carried = "", True
        for step in steps:
            _, kind = step.key.split()
            first = step.values[0] if step.values else ""
            if kind == "comment" or (kind == "connect" and not step.values):
                continue
            if kind == "expect" and "expect" not in self._settings and (pattern := _pattern(step.values)):
                self._settings["expect"] = Setting(pattern, step.word)
            elif kind in ("send", "send-binary") and len(step.values) == 1 and "expect" not in self._settings:
                carried = carried and (kind == "send" or _is_hex(first))
                sent += bytes.fromhex(first).decode("latin-1") if kind == "send-binary" and carried else first
                self._settings["send"] = Setting(sent, step.word)
            else:
                carried = False
        if not carried:
            self._settings = {}
            why = "a check says one thing and waits for one: have a check of type command for more"
            self.left_out += [each.word.left_out(why) for each in steps]

    def _read_http(self, option: Line, steps: list[Line]) -> None:
        """The request, and what is expected."""
        method, path, *version = [*option.values, ""] if len(option.values) > 1 else ["", *option.values, ""]
        self._settings["method"] = Setting(method or "OPTIONS", option.word)
        self._settings["path"] = Setting(path or "/", option.word)
        headers = re.split(r"\r\n|\\r\\n", " ".join(version))[1:]
        self._put_headers([each for each in headers if each], option.word)
        for step in steps:
            kind, *text = step.values if step.key == "http-check expect" else [""]
            if step.key == "http-check send":
                self._read_send(step)
            elif kind == "status" and len(text) == 1:
                self._settings["status"] = Setting(text[0].split(","), step.word)
            elif kind in ("string", "rstring") and len(text) == 1:
                pattern = re.escape(text[0]) if kind == "string" else text[0]
                self._settings["expect"] = Setting(pattern, step.word)
            elif step.key != "http-check comment" and step.words != ["http-check", "connect"]:
                self.left_out.append(
                    step.word.left_out("see status and expect; a check of type command can more")
                )

    def _read_send(self, step: Line) -> None:
        """`meth METHOD`, `uri URI`, `ver VERSION`, `hdr NAME VALUE`."""
        headers: list[str] = []
        rest = iter(step.values)
        for name in rest:
            value = next(rest, "")
            if name == "hdr":
                headers.append(f"{value}: {next(rest, '')}")
            elif name in ("meth", "uri"):
                self._settings["method" if name == "meth" else "path"] = Setting(value, step.word)
            elif name != "ver":
                self.left_out.append(step.word.left_out(f"{name}: a request has method, path and headers"))
        self._put_headers(headers, step.word)

    def _put_headers(self, headers: list[str], word: Word) -> None:
        others = []
        for header in headers:
            name, _, value = header.partition(":")
            if name.lower() == "host":
                self._settings["host"] = Setting(value.strip(), word)
            elif name.lower() != "connection":
                others.append(header)
        if others:
            self._settings["headers"] = Setting(others, word)


def _agent(said: Words) -> Table:
    _, word = said.pop("agent-check")
    table = Table(word)
    table.put("type", "agent", word)
    table.put("interval_s", _INTERVAL_S, word, "HAProxy's agent-inter")
    for name, key in (("agent-port", "port"), ("agent-send", "send"), ("agent-addr", "address"),
                      ("agent-inter", "interval_s")):  # fmt: skip
        if name in said:
            text, its_word = said.pop(name)
            value = {"port": number, "interval_s": seconds}.get(key, str)(text)
            table.put(key, value, its_word)
    return table


def _put_tls(table: Table, said: Words, word: Word) -> None:
    """HAProxy verifies unless it is told not to."""
    if "check-sni" in said:
        table.put("server_name", *said.pop("check-sni"))
    verify, verify_word = said.pop("verify", ("required", word))
    if verify == "required":
        table.put("verify", True, verify_word, "" if verify_word != word else "without verify none")
        if "ca-file" in said:
            table.put("ca_file", *said.pop("ca-file"))


def _is_hex(text: str) -> bool:
    return re.fullmatch("(?:[0-9a-fA-F]{2})*", text) is not None


def _pattern(values: list[str]) -> str:
    """The regular expression for what `tcp-check expect` waits for; empty if there is none."""
    kind, text = values if len(values) == 2 else ("", "")
    if kind == "string":
        return re.escape(text)
    if kind == "binary" and _is_hex(text):
        return "".join(f"\\x{each:02x}" for each in bytes.fromhex(text))
    return text if kind == "rstring" else ""
