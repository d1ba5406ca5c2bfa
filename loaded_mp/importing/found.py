"""What readers find: settings in the shape of the model, each with the word that it comes from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from loaded_mp.config.errors import Mistake

if TYPE_CHECKING:
    from loaded_mp.importing.virtual import Virtual


@dataclass(frozen=True)
class Word:
    """A word of a file, with what belongs to it."""

    place: str  #: file and line
    text: str

    def left_out(self, why: str) -> Mistake:
        """That it is not carried over, and why, or what to do."""
        return Mistake(self.place, self.text, why)


@dataclass
class Setting:
    """A value that the model is to take."""

    value: Any
    word: Word
    note: str = ""  #: for the comment beside it
    refused: str = ""  #: why the model does not take it


@dataclass
class Table:
    """Settings by the model's names, and tables in it. A list of settings is a list of values."""

    word: Word
    settings: dict[str, Setting | list[Setting]] = field(default_factory=dict)
    tables: dict[str, list["Table"]] = field(default_factory=dict)
    left_out: list[Mistake] = field(default_factory=list)  #: found while reading
    note: str = ""  #: in what it is not quite the same here
    refused: str = ""  #: why the model does not take it
    advice: dict[str, str] = field(default_factory=dict)  #: what to do where the model misses a setting

    def put(self, name: str, value: Any, word: Word, note: str = "") -> None:
        """Set a setting, in place of what was set."""
        self.settings[name] = Setting(value, word, note)

    def value(self, name: str) -> Any:
        """The value of a setting that is no list of settings; None if there is none."""
        setting = self.settings.get(name)
        return setting.value if isinstance(setting, Setting) else None

    def plain(self) -> dict[str, Any]:
        """It as the model takes it, without what that has refused."""
        data: dict[str, Any] = {}
        for name, setting in self.settings.items():
            if isinstance(setting, list):
                data[name] = [each.value for each in live(setting)]
            elif not setting.refused:
                data[name] = setting.value
        for name, tables in self.tables.items():
            data[name] = [each.plain() for each in live(tables)]
        return data


def live(those: list[Any]) -> list[Any]:
    """The settings or tables that the model has not refused."""
    return [each for each in those if not each.refused]


@dataclass
class Found:
    """What is in a file."""

    virtuals: list["Virtual"] = field(default_factory=list)
    left_out: list[Mistake] = field(default_factory=list)


class Reader(NamedTuple):
    """A kind of files."""

    name: str  #: for people
    knows: Callable[[str], bool]  #: whether a text is one
    read: Callable[[str, str], Found]  #: a text, and the name of its file


def number(text: str) -> Any:
    """A number, if it is one; else the text, which the model refuses."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text
