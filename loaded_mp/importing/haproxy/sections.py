"""The text of a HAProxy configuration as sections of lines (configuration.txt, 2.1 and 2.2)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from loaded_mp.config.errors import Mistake
from loaded_mp.importing.found import Word
from loaded_mp.importing.haproxy.reasons import OWN, REASONS

#: A line that begins a section; a block of keepalived's would end in a brace.
SECTION = re.compile(
    r"^\s*(?:global|defaults|listen|frontend|backend|peers|resolvers|mailers|userlist|cache|program|ring"
    r"|log-forward|http-errors|fcgi-app|crt-store|log-profile|traces)\b(?![^\n]*\{\s*$)",
    re.MULTILINE,
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>\#.*)|'(?P<strong>[^']*)'|"(?P<weak>(?:\\.|[^"\\])*)\""""
    r"""|(?P<plain>(?:\\.|[^\s'"#\\])+)"""
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_IN_TWO_WORDS = ("timeout", "option", "tcp-check", "http-check", "stick")

#: What a proxy has from its defaults section, if it says nothing itself.
INHERITED = {
    "mode", "balance", "hash-type", "default_backend", "default-server", "timeout client", "timeout server",
    "timeout connect", "timeout check", "timeout tunnel", "timeout client-fin", "timeout server-fin",
    "option allbackups", "option tcp-check", "option httpchk", "option smtpchk", "option ssl-hello-chk",
    "option redis-check",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of a section."""

    word: Word
    words: list[str]

    @property
    def key(self) -> str:
        """What it is about: its first word, or two."""
        return " ".join(self.words[: 2 if self.words[0] in _IN_TWO_WORDS else 1])

    @property
    def values(self) -> list[str]:
        """What stands behind that."""
        return self.words[2 if self.words[0] in _IN_TWO_WORDS else 1 :]


@dataclass
class Section:
    """A section: whoever reads lines takes them, and what is left is named."""

    word: Word
    kind: str
    name: str
    lines: list[Line] = field(default_factory=list)
    defaults: dict[str, Line] = field(default_factory=dict)  #: by key
    _read: set[str] = field(default_factory=set)

    def all(self, *keys: str) -> list[Line]:
        """Its own lines of these keys."""
        self._read |= set(keys)
        return [each for each in self.lines if each.key in keys]

    def last(self, *keys: str) -> Line | None:
        """The line that holds, of several keys that exclude each other."""
        inherited = [line for key, line in self.defaults.items() if key in keys]
        return [None, *inherited, *self.all(*keys)][-1]

    def value(self, key: str, default: str = "") -> str:
        """The first value of the line that holds."""
        line = self.last(key)
        return line.values[0] if line and line.values else default

    def rest(self) -> list[Mistake]:
        """Lines that nobody has read, and why."""
        return [not_carried(line) for line in self.lines if line.key not in self._read]


def not_carried(line: Line) -> Mistake:
    """That a line is not carried over, and why."""
    why = (
        OWN if line.words[0] == "no" else REASONS.get(" ".join(line.words[:2])) or REASONS.get(line.words[0])
    )
    return line.word.left_out(why or "nothing here is like it")


def sections(text: str, name: str) -> tuple[list[Section], list[Mistake]]:
    """The sections of the file `name`, and lines that belong to none."""
    found: list[Section] = []
    wrong: list[Mistake] = []
    named: dict[str, dict[str, Line]] = {}
    defaults: dict[str, Line] = {}
    for row, line in enumerate(text.split("\n"), 1):
        word = Word(f"{name}:{row}", " ".join(line.split()))
        try:
            words = list(_words(line))
        except ValueError as error:
            wrong.append(word.left_out(str(error)))
            continue
        if not words:
            continue
        if SECTION.match(line):
            section = Section(word, words[0], words[1] if len(words) > 1 else "")
            section.defaults |= named.get(words[-1], {}) if words[-2:-1] == ["from"] else {}
            if section.kind == "defaults":
                defaults = named[section.name] = section.defaults
            elif words[-2:-1] != ["from"]:
                section.defaults |= defaults
            found.append(section)
        elif words[0].startswith("."):
            wrong.append(word.left_out("conditions are not followed: write out what holds"))
        elif not found:
            wrong.append(word.left_out("it stands in no section"))
        else:
            found[-1].lines.append(Line(word, words))
            if found[-1].kind == "defaults":
                _inherit(defaults, found[-1].lines[-1])
    return found, wrong


def _inherit(defaults: dict[str, Line], line: Line) -> None:
    """Note what proxies have from a defaults section; the last line of a key stands last."""
    if line.key in INHERITED:
        defaults.pop(line.key, None)
        defaults[line.key] = line


def _words(line: str) -> Iterator[str]:
    """The words of a line, as HAProxy cuts and unquotes them. Raises ValueError."""
    word: str | None = None
    place = 0
    while place < len(line):
        token = _TOKEN.match(line, place)
        if not token:
            raise ValueError("a quote is not closed")
        place = token.end()
        if token["comment"] is not None:
            break
        if token["space"]:
            if word is not None:
                yield word
            word = None
            continue
        if token["weak"] and re.search(r"(?<!\\)\$", token["weak"]):
            raise ValueError("variables of the environment are not filled in: write it out")
        strong, escaped = token["strong"], token["weak"] or token["plain"] or ""
        word = (word or "") + (strong if strong is not None else _ESCAPE.sub(_character, escaped))
    if word is not None:
        yield word


def _character(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)
