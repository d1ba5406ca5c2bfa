"""Where a configuration comes from, so that it can be read again for a reload."""

from dataclasses import dataclass
from pathlib import Path

from loaded_mp.config.classic import Family, read_classic
from loaded_mp.config.contradictions import tables
from loaded_mp.config.draft import Draft, Place
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.flags import read_flags
from loaded_mp.config.model import Config
from loaded_mp.config.own_schedulers import try_schedulers
from loaded_mp.config.toml import read_toml

#: Read when neither a file nor a VIP is named.
DEFAULT_FILES: dict[Family, Path] = {4: Path("loaded.config"), 6: Path("loaded.config6")}


@dataclass(frozen=True)
class Source:
    """A file or flags, and flags that win over the file. Values of flags are checked when it is loaded."""

    path: Path | None = None
    families: tuple[Family, ...] = (4,)  #: what is read of classic files
    vips: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    check_port: str | None = None  #: switches the checks on, for every service
    failover: bool = False  #: switches on the checks of a classic file
    forwarding: str | None = None  #: how every service is forwarded
    overrides: tuple[tuple[str, str, str], ...] = ()  #: name in Config, value, flag

    @property
    def toml(self) -> Path | None:
        """The TOML file that it reads, absolute; None: it is another kind."""
        is_toml = self.path and self.path.suffix == ".toml" and not (self.vips or self.backends)
        return self.path.absolute() if self.path and is_toml else None

    def load(self) -> Config:
        """Read and check it, now. Raises ConfigError with all mistakes."""
        draft = self._draft()
        for name, value, flag in self.overrides:
            draft.data[name] = value
            draft.places[name,] = Place(f"{flag} {value}", "")
        if self.check_port is not None:
            _put_check_port(draft, self.check_port)
        if self.forwarding is not None:
            _put_forwarding(draft, self.forwarding)
        config = draft.config()
        try_schedulers(config)
        return config

    def _draft(self) -> Draft:
        if self.vips or self.backends:
            draft = read_flags(self.vips, self.backends, self.ports)
            if self.path:
                text = "found a file and --vip or --backend, expected one of them"
                draft.mistakes.append(Mistake(f"-c {self.path}", "", text))
            if self.failover and self.check_port is None:
                draft.mistakes.append(Mistake("-f", "", "expected --check-port PORT beside it"))
            return draft
        if self.path and self.toml:
            draft = read_toml(self.path)
            if self.failover and self.check_port is None:
                text = "expected --check-port PORT beside it, or [service.check] in the file instead of it"
                draft.mistakes.append(Mistake("-f", "", text))
        else:
            drafts = [self._classic(family) for family in self.families]
            draft = drafts[0] if len(drafts) == 1 else _joined(drafts)
        for port in self.ports:
            text = "belongs to --vip and --backend; in a TOML file `listen` says it"
            draft.mistakes.append(Mistake(f"--port {port}", "", text))
        return draft

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


def _put_forwarding(draft: Draft, forwarding: str) -> None:
    """Forward every service so, whatever else is said of it."""
    for number, service in tables(draft.data.get("services")):
        service["forwarding"] = forwarding
        draft.places["services", number, "forwarding"] = Place(f"--forwarding {forwarding}", "")


def _put_check_port(draft: Draft, port: str) -> None:
    """Check the backends of every service at a port, whatever else is said of the check."""
    for number, service in tables(draft.data.get("services")):
        check = service.get("checks")
        if not isinstance(check, dict) or check.get("type", "tcp") != "tcp":
            check = {}
        service["checks"] = {**check, "port": port}
        draft.places["services", number, "checks", "port"] = Place(f"--check-port {port}", "")


def _joined(drafts: list[Draft]) -> Draft:
    """Both families' files as one configuration: a service for each; of other settings the first counts."""
    joined = Draft({"services": [], "network": {}}, whole=drafts[0].whole)
    network = joined.data["network"]
    for number, draft in enumerate(drafts):
        there = {name: len(value) for name, value in network.items() if isinstance(value, list)}
        for name, value in draft.data["network"].items():
            network[name] = network[name] + value if name in there else network.get(name, value)
        joined.data = {**draft.data, **joined.data}
        joined.data["services"] += draft.data["services"]
        for location, place in draft.places.items():
            here = location
            if location[0] == "services":
                here = ("services", number, *location[2:])
            elif len(location) == 3 and isinstance(location[2], int):
                here = (*location[:2], location[2] + there.get(str(location[1]), 0))
            joined.places.setdefault(here, place)
        joined.mistakes += draft.mistakes
    return joined
