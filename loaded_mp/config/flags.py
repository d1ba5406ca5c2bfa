"""A configuration without a file: one service from `--vip`, `--backend`, `--port` and `--check-port`."""

from collections.abc import Sequence
from typing import Any

from loaded_mp.config.draft import Draft, Place
from loaded_mp.config.errors import Mistake


def read_flags(
    vips: Sequence[str], backends: Sequence[str], ports: Sequence[str], check_port: int | None
) -> Draft:
    """What the flags say. A backend is `ADDRESS[,weight=N][,name=NAME]`."""
    service: dict[str, Any] = {"name": "default", "vips": list(vips), "listen": list(ports)}
    draft = Draft({"services": [service]}, whole="flags", spelling={"services": "service"})
    for name, flag, values in (("vips", "--vip", vips), ("listen", "--port", ports)):
        draft.places["services", 0, name] = Place(flag, "")
        for row, value in enumerate(values):
            draft.places["services", 0, name, row] = Place(f"{flag} {value}", "")
    service["backends"] = []
    draft.places["services", 0, "backends"] = Place("--backend", "")
    for row, text in enumerate(backends):
        place = f"--backend {text}"
        address, *settings = text.split(",")
        backend = {"address": address}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if key in ("weight", "name") and equals:
                backend[key] = value
            else:
                draft.mistakes.append(
                    Mistake(place, "", f"found {setting!r}, expected weight=N or name=NAME")
                )
        service["backends"].append(backend)
        draft.places["services", 0, "backends", row] = Place(place, "")
    if check_port is not None:
        service["check"] = {"port": check_port}
        draft.places["services", 0, "check"] = Place(f"--check-port {check_port}", "")
    return draft
