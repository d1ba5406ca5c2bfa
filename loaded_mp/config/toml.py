"""Configuration in TOML: `[network]`, `[[service]]`, `[[service.backend]]`, `[service.check]`."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from loaded_mp.checks import CHECKS
from loaded_mp.config.draft import Draft, Location, Place
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.file import read_file
from loaded_mp.config.model import Config

#: Tables that repeat have singular names in the file. Both ways, so that the plural is unknown in the file.
_SPELLING = {
    "services": "service",
    "service": "services",
    "backends": "backend",
    "backend": "backends",
    "checks": "check",
    "check": "checks",
}
_DEPTH = 4  #: of the deepest table, as ("services", 0, "backends", 0)
_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\-\s\"']+?)\s*\]")
_KEY = re.compile(r"\s*([\w.\-\"']+)\s*=")


def read_toml(path: Path) -> Draft:
    """What a TOML file says. Raises ConfigError if it cannot be read or is not TOML."""
    try:
        text = read_file(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(Mistake(str(path), "", f"cannot be read: {error}")) from error
    return parse_toml(text, str(path))


def parse_toml(text: str, name: str) -> Draft:
    """What the text of the file `name` says. Raises ConfigError if it is not TOML."""
    try:
        data = _with_model_names(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ConfigError(Mistake(_place_of(error, text, name), "", f"not TOML: {error}")) from error
    services = data.get("services")
    if isinstance(services, list):
        data["services"] = [_with_model_names(each) if isinstance(each, dict) else each for each in services]
    return Draft(data, _places(text, name), name, [], _SPELLING)


def _place_of(error: Exception, text: str, name: str) -> str:
    """The line that tomllib names in its message."""
    if line := re.search(r"\(at line (\d+)", str(error)):
        return f"{name}:{line[1]}"
    last = len(text.split("\n"))
    return f"{name}:{last}" if "(at end of document)" in str(error) else name


def _with_model_names(table: dict[str, Any]) -> dict[str, Any]:
    return {_SPELLING.get(key, key): value for key, value in table.items()}


def _parts(dotted: str) -> list[str]:
    names = (part.strip(" \t\"'") for part in dotted.split("."))
    return [_SPELLING.get(name, name) for name in names]


def _places(text: str, name: str) -> dict[Location, Place]:
    """The lines of tables and keys, for messages only: strange layouts are located less exactly."""
    places: dict[Location, Place] = {}
    counts: Counter[Location] = Counter()
    table: Location = ()
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = ()
            parts = _parts(header[2])
            for depth, part in enumerate(parts, 1):
                table = (*table, part)
                if header[1] == "[[" and depth == len(parts):
                    counts[table] += 1
                if counts[table]:
                    table = (*table, counts[table] - 1)
            for depth in range(1, _DEPTH + 1):
                places.setdefault(table[:depth], Place(f"{name}:{number}"))
        elif key := _KEY.match(line):
            places.setdefault((*table, *_parts(key[1])), Place(f"{name}:{number}"))
    return places


def toml_value(value: Any) -> str:
    """A value as TOML writes it; text is in quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {toml_value(each)}' for name, each in value.items())} }}"
    # What JSON escapes, TOML reads the same; DEL is the one character that only TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(model: Any, skip: tuple[str, ...] = ()) -> list[str]:
    """The lines of a model's settings that differ from what is the default anyway."""
    return [
        f"{name} = {toml_value(getattr(model, name))}"
        for name, info in type(model).model_fields.items()
        if name not in skip
        and getattr(model, name) is not None
        and (info.is_required() or getattr(model, name) != info.default)
    ]


def to_toml(config: Config) -> str:
    """A file that gives an equal configuration; what is the default is left out."""
    lines = _table(config, ("services", "network"))
    if network := _table(config.network):
        lines += ["", "[network]", *network]
    for service in config.services:
        lines += ["", "[[service]]", *_table(service, ("backends", "checks", "discovery", "tunnel"))]
        header = "[service.check]" if len(service.checks) == 1 else "[[service.check]]"
        for check in service.checks:
            kind = [] if isinstance(check, CHECKS[0]) else [f"type = {toml_value(check.type)}"]
            lines += ["", header, *kind, *_table(check)]
        if service.discovery:
            lines += ["", "[service.discovery]", *_table(service.discovery)]
        if tunnel := _table(service.tunnel):
            lines += ["", "[service.tunnel]", *tunnel]
        for backend in service.backends:
            lines += ["", "[[service.backend]]", *_table(backend)]
    return "\n".join(lines).lstrip("\n") + "\n"
