"""A configuration without a file: one service from `--vip`, `--backend` and `--port`."""

from collections.abc import Sequence
from typing import Any

from loaded_mp.config.draft import Draft, Place, found
from loaded_mp.config.errors import Mistake


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
        address, *settings = text.split(",")
        backend = {"address": address}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if key in ("weight", "name") and equals:
                backend[key] = value
            else:
                wrong = f"found {found(setting)}, expected weight=N or name=NAME"
                draft.mistakes.append(Mistake(f"--backend {text}", "", wrong))
        service["backends"].append(backend)
    return draft
