"""Where a configuration comes from, so that it can be read again for a reload."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaded_mp.config.classic import Family, read_classic
from loaded_mp.config.draft import Draft, Place
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.flags import read_flags
from loaded_mp.config.model import Config
from loaded_mp.config.toml import read_toml

#: Read when neither a file nor a VIP is named.
DEFAULT_FILES: dict[Family, Path] = {4: Path("loaded.config"), 6: Path("loaded.config6")}


@dataclass(frozen=True)
class Source:
    """A file or flags, and flags that win over the file."""

    path: Path | None = None
    families: tuple[Family, ...] = (4,)  #: what is read of classic files
    vips: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    check_port: int | None = None
    failover: bool = False  #: switch on the checks of a classic file
    overrides: tuple[tuple[str, Any, str], ...] = ()  #: name in Config, value, flag

    def load(self) -> Config:
        """Read and check it, now. Raises ConfigError with all mistakes."""
        draft = self._draft()
        for name, value, flag in self.overrides:
            draft.data[name] = value
            draft.places[name,] = Place(flag, "")
        return draft.config()

    def _draft(self) -> Draft:
        if self.vips or self.backends:
            if self.path:
                raise ConfigError(
                    Mistake("flags", "", "found --config and --vip or --backend, expected one way")
                )
            return read_flags(self.vips, self.backends, self.ports, self.check_port)
        if self.ports or self.check_port:
            raise ConfigError(Mistake("flags", "", "--port and --check-port belong to --vip and --backend"))
        if self.path and self.path.suffix == ".toml":
            return read_toml(self.path)
        drafts = [self._classic(family) for family in self.families]
        return drafts[0] if len(drafts) == 1 else _joined(drafts)

    def _classic(self, family: Family) -> Draft:
        path = self.path or DEFAULT_FILES[family]
        if self.path is None and not path.exists():
            raise ConfigError(
                Mistake(
                    str(path),
                    "",
                    "there is no such file here; name one with -c FILE, or give --vip and --backend",
                )
            )
        return read_classic(path, family, self.failover)


def _joined(drafts: list[Draft]) -> Draft:
    """Both families' files as one configuration: a service for each; of other settings the first counts."""
    joined = Draft({"services": [], "network": {}}, whole=drafts[0].whole)
    for number, draft in enumerate(drafts):
        joined.data["services"] += draft.data["services"]
        for name, value in draft.data["network"].items():
            there = joined.data["network"].get(name)
            if there is None:
                joined.data["network"][name] = value
            elif isinstance(value, list):
                joined.data["network"][name] = there + [each for each in value if each not in there]
        for name, value in draft.data.items():
            joined.data.setdefault(name, value)
        for location, place in draft.places.items():
            here = ("services", number, *location[2:]) if location[0] == "services" else location
            joined.places.setdefault(here, place)
        joined.mistakes += draft.mistakes
    return joined
