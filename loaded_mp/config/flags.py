"""A configuration without a file: one service from `--vip`, `--backend` and `--port`."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from loaded_mp.config.draft import Draft, Place, explained, found
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Backend


def read_flags(vips: Sequence[str], backends: Sequence[str], ports: Sequence[str]) -> Draft:
    """What the flags say. A backend is `ADDRESS[,weight=N][,name=NAME]`."""
    service: dict[str, Any] = {"name": "default", "vips": list(vips), "listen": list(ports), "backends": []}
    draft = Draft({"services": [service]}, whole="flags")
    for name, flag, values in (
        ("vips", "--vip", vips),
        ("listen", "--port", ports),
        ("backends", "--backend", backends),
    ):
        draft.places["services", 0, name] = Place(flag, "")
        for row, value in enumerate(values):
            draft.places["services", 0, name, row] = Place(f"{flag} {value}", "")
    for text in backends:
        table, mistakes = _backend(text, f"--backend {text}")
        service["backends"].append(table)
        draft.mistakes += mistakes
    return draft


def read_backend(text: str) -> Backend:
    """The backend that `ADDRESS[,weight=N][,name=NAME]` says. Raises ConfigError."""
    table, mistakes = _backend(text, text)
    try:
        backend = Backend.model_validate(table)
    except ValidationError as error:
        mistakes += [Mistake(text, str(each["loc"][0]), explained(each)) for each in error.errors()]
    if mistakes:
        raise ConfigError(*mistakes)
    return backend


def _backend(text: str, place: str) -> tuple[dict[str, str], list[Mistake]]:
    address, *settings = text.split(",")
    backend, mistakes = {"address": address}, []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key in ("weight", "name") and equals:
            backend[key] = value
        else:
            mistakes.append(Mistake(place, "", f"found {found(setting)}, expected weight=N or name=NAME"))
    return backend, mistakes
