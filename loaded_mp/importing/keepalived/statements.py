"""The text of a keepalived configuration as statements: a word, what stands behind it, perhaps a block."""

import re
from dataclasses import dataclass, field

from loaded_mp.config.errors import Mistake
from loaded_mp.importing.found import Word
from loaded_mp.importing.keepalived.reasons import REASONS

_TOKEN = re.compile(
    r"""(?P<comment>[#!].*)|(?P<brace>[{}])"""
    r"""|(?P<word>(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s{}"'#!\\]|["'\\])+)"""
)
_QUOTED = re.compile(r""""((?:\\.|[^"\\])*)"|'([^']*)'""")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]+)|([0-7]{1,3})|(.))")
_ESCAPES = {"a": "\a", "b": "\b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
#: Blocks in blocks.
_DEEPEST = 16
#: How checks are timed: each block may say it for those in it.
_TIMES = ("delay_loop", "connect_timeout", "retry", "delay_before_retry")
_TRUE = ("true", "yes", "on", "")


@dataclass
class Statement:
    """A line, and the block behind it."""

    word: Word
    words: list[str]  #: without quotes
    block: list["Statement"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its first word."""
        return self.words[0]

    @property
    def value(self) -> str:
        """What stands behind the name."""
        return " ".join(self.words[1:])


class Block:
    """The statements of a block: whoever reads one takes it, and what is left is named."""

    def __init__(self, block: list[Statement]) -> None:
        self._left = list(block)
        self._left_out: list[Mistake] = []

    def take(self, *names: str) -> Statement | None:
        """The last of these names: it is by that that keepalived goes."""
        taken = self.take_all(*names)
        for each in taken[:-1]:
            self.leave_out(each, "it is said again below")
        return taken[-1] if taken else None

    def take_all(self, *names: str) -> list[Statement]:
        """All of these names."""
        taken = [each for each in self._left if each.name in names]
        self._left = [each for each in self._left if each.name not in names]
        return taken

    def flag(self, name: str) -> Statement | None:
        """A statement that is true."""
        said = self.take(name)
        return said if said and said.value.lower() in _TRUE else None

    def times(self, outer: dict[str, Statement]) -> dict[str, Statement]:
        """How checks are timed in it; what it does not say, the block around it does."""
        return outer | {name: said for name in _TIMES if (said := self.take(name))}

    def leave_out(self, statement: Statement, why: str) -> None:
        """Name a statement, or a part of it, that is not carried over."""
        self._left_out.append(statement.word.left_out(why))

    def rest(self) -> list[Mistake]:
        """What is not carried over, and why."""
        return self._left_out + [not_carried(each) for each in self._left]


def not_carried(statement: Statement, reasons: dict[str, str] = REASONS) -> Mistake:
    """That a statement is not carried over, and why."""
    why = reasons.get(statement.name) or REASONS.get(statement.name[:1], "nothing here is like it")
    return statement.word.left_out(why)


def statements(text: str, name: str) -> tuple[list[Statement], list[Mistake]]:
    """The statements of the file `name`, and braces that belong to nothing."""
    top: list[Statement] = []
    stack = [top]
    wrong: list[Mistake] = []
    for row, line in enumerate(text.split("\n"), 1):
        words: list[str] = []
        for token in [*_TOKEN.finditer(line), None]:
            if token and token["word"]:
                words.append(token["word"])
                continue
            if words:
                word = Word(f"{name}:{row}", " ".join(words))
                stack[-1].append(Statement(word, [_unquoted(each) for each in words]))
                words = []
            if token is None or token["comment"]:
                break
            if token["brace"] == "{" and stack[-1] and len(stack) < _DEEPEST:
                stack.append(stack[-1][-1].block)
            elif token["brace"] == "}" and len(stack) > 1:
                stack.pop()
            else:
                here = Word(f"{name}:{row}", token["brace"])
                wrong.append(here.left_out("this brace belongs to nothing"))
    if len(stack) > 1:
        wrong.append(Word(f"{name}:{row}", "").left_out("the file ends within a block, expected }"))
    return top, wrong


def _unquoted(word: str) -> str:
    return _QUOTED.sub(lambda found: found[2] if found[1] is None else _unescaped(found[1]), word)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        hexadecimal, octal, other = found.groups()
        if hexadecimal or octal:
            return chr((int(hexadecimal, 16) if hexadecimal else int(octal, 8)) & 0xFF)
        return _ESCAPES.get(other, other)

    return _ESCAPE.sub(character, text)
