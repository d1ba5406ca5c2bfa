"""From what a reader found to a Config, or to all mistakes with their places."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loaded_mp.config.contradictions import contradictions
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Config

Location = tuple[str | int, ...]  #: path in the nested data, as pydantic says it
_LARGEST = 1 << 64
_LONGEST = 100  #: characters of a value in a message


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    place: str
    key: str | None = None  #: as it is spelt there; None: as the file spells the model's names


class Fault(NamedTuple):
    """What is wrong in nested data."""

    location: Location  #: of a setting, or of the table that it is about
    text: str
    absent: bool = False  #: something is missing there


@dataclass
class Draft:
    """Nested data in the shape of Config, not checked yet, and where each value came from."""

    data: dict[str, Any]
    places: dict[Location, Place] = field(default_factory=dict)
    whole: str = ""  #: the place of what has no place of its own, such as the file
    mistakes: list[Mistake] = field(default_factory=list)  #: found while reading
    spelling: Mapping[str, str] = field(default_factory=dict)  #: names of the model -> names of the file

    def config(self) -> Config:
        """The checked configuration. Raises ConfigError with all mistakes."""
        mistakes = list(self.mistakes)
        said = {(each.place, each.key) for each in mistakes}
        config, faults = checked(self.data)
        for fault in faults:
            mistake = self._mistake(fault.location, fault.text)
            # What is absent because its wrong value was refused is not missed as well.
            if not (fault.absent and (mistake.place, mistake.key) in said):
                mistakes.append(mistake)
        if mistakes or config is None:
            raise ConfigError(*sorted(dict.fromkeys(mistakes), key=in_file))
        return config

    def _mistake(self, location: Location, text: str) -> Mistake:
        """Put a mistake where its value, or the nearest thing around it, was written."""
        for length in range(len(location), 0, -1):
            place = self.places.get(location[:length])
            if place:
                return Mistake(place.place, self._key(location) if place.key is None else place.key, text)
        return Mistake(self.whole, self._key(location), text)

    def _key(self, location: Location) -> str:
        return ".".join(self.spelling.get(part, part) for part in location if isinstance(part, str))


def checked(data: dict[str, Any]) -> tuple[Config | None, list[Fault]]:
    """The configuration that nested data in the shape of Config is, or None, and what is wrong with it."""
    config, faults = None, []
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        around = {each["loc"][:length] for each in details for length in range(len(each["loc"]))}
        for each in details:
            absent = each["type"] in _ABSENT
            if not (absent and each["loc"] in around):
                faults.append(Fault(_written(data, _about(each)), explained(each), absent))
    faults += [Fault(location, text) for location, text in contradictions(data)]
    return config, faults


def _about(error: ErrorDetails) -> Location:
    """What an error is about, which may be a setting of the table that it is reported for."""
    if error["type"] == "union_tag_invalid":
        return (*error["loc"], "type")
    setting, _ = _of_setting(error)
    return (*error["loc"], setting) if setting else error["loc"]


def _of_setting(error: ErrorDetails) -> tuple[str, str]:
    """The setting that a table's own rule is about, if it says so ("observe: expected ..."), and the rest."""
    text = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    name, colon, rest = text.partition(": ")
    about = isinstance(error["input"], dict) and colon and name.isidentifier()
    return (name, rest) if about else ("", text)


def _written(data: Any, location: Location) -> Location:
    """A location without what pydantic puts into it.

    That is the type of a table that may be of several, and the row of a table that stands alone.
    """
    here = data
    written: list[str | int] = []
    for part in location[:-1]:
        if isinstance(here, dict) and part not in here:
            continue
        written.append(part)
        if isinstance(here, dict | list):
            here = here[part]  # type: ignore[index]  # a key of a table, a row of a list
    return (*written, *location[-1:])


def in_file(mistake: Mistake) -> tuple[str, int]:
    """Sorts mistakes as a reader of the file meets them."""
    name, _, line = mistake.place.rpartition(":")
    return (name, int(line)) if line.isdecimal() else (mistake.place, 0)


def _of_value(error: ErrorDetails) -> str:
    setting, text = _of_setting(error)
    return text if setting else f"found {found(error['input'])}, {text}"


_ABSENT = ("missing", "too_short")
_Explain = Callable[[ErrorDetails], str]
_EXPLANATIONS: dict[str, _Explain] = {
    "missing": lambda _: "missing, expected a value",
    "too_short": lambda _: "found none, expected at least one",
    "extra_forbidden": lambda _: "no such setting",
    "union_tag_invalid": lambda error: (
        f"found {error['ctx']['tag']!r}, expected one of {error['ctx']['expected_tags']}"
    ),
    "value_error": _of_value,
}

_WISHES = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "string_pattern_mismatch": "letters, digits, and any of _ . -",
}


def explained(error: ErrorDetails) -> str:
    """What is wrong with a value, for people."""
    if explain := _EXPLANATIONS.get(error["type"]):
        return explain(error)
    wish = _WISHES.get(error["type"]) or error["msg"].removeprefix("Input should ").removeprefix("be ")
    return f"found {found(error['input'])}, expected {wish}"


def found(value: object) -> str:
    """A value as a message shows it; a long one is not shown."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    # The interpreter refuses to write very large numbers (sys.set_int_max_str_digits).
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a huge number"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
