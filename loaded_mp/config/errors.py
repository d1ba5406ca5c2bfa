"""Mistakes in a configuration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong, for people."""

    place: str  #: file and line, or the flag
    key: str  #: as the file spells it; empty if it is about the whole
    text: str  #: what was found and what was expected

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


class ConfigError(Exception):
    """A configuration cannot be used; carries every mistake that was found."""

    def __init__(self, *mistakes: Mistake) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes
