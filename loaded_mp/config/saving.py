"""Writing what was changed at run time into a TOML file, whose comments stay."""

import os
import stat
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Item, Key, Table, Whitespace

from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.file import read_file
from loaded_mp.config.model import Backend
from loaded_mp.config.toml import parse_toml
from loaded_mp.fields import Endpoint, EndpointField, Settings

#: Of the file as it was, behind its name.
BACKUP = ".before-save"

_Line = tuple[Key | None, Item]


class Unsaved(Settings):
    """What was changed at run time, with the names of services."""

    file: Path | None  #: a TOML file, absolute; None: the configuration is not from one
    added: tuple[tuple[str, Backend], ...] = ()
    removed: tuple[tuple[str, EndpointField], ...] = ()
    weights: tuple[tuple[str, EndpointField, int], ...] = ()  #: the operator's

    def lines(self) -> list[str]:
        """It, for people."""
        return [
            *(f"service {name}: - backend {endpoint}" for name, endpoint in self.removed),
            *(f"service {name}: + backend {each.address}, weight {each.weight}" for name, each in self.added),
            *(
                f"service {name}: backend {endpoint}: weight {weight}"
                for name, endpoint, weight in self.weights
            ),
        ]


def save(file: Path, unsaved: Unsaved) -> Path | None:
    """Write it into the file, all of it or nothing; where the file as it was is kept. None: it has it all.

    Raises ConfigError if it does not fit the file, ValueError if that cannot be read, OSError if it cannot be
    written.
    """
    file = file.resolve()  # a link stays one
    before = read_file(file).decode()
    parse_toml(before, str(file)).config()
    after = changed(before, str(file), unsaved)
    if after == before:
        return None
    parse_toml(after, str(file)).config()
    backup, new = file.with_name(file.name + BACKUP), file.with_name(file.name + ".new")
    for path, text in ((backup, before), (new, after)):
        _write(path, text, file.stat())
    new.replace(file)
    return backup


def changed(text: str, name: str, unsaved: Unsaved) -> str:
    """The text of the file `name`, which has no mistakes, with the changes. Raises ConfigError."""
    document: Any = tomlkit.parse(text)
    services = {str(each["name"]): each for each in document["service"]}
    for service, endpoint in unsaved.removed:
        _remove(_service(services, service, name), endpoint)
    for service, backend in unsaved.added:
        _add(_service(services, service, name), backend)
    for service, endpoint, weight in unsaved.weights:
        for each in _service(services, service, name).get("backend", ()):
            if _endpoint(each) == endpoint:
                each["weight"] = weight
    return tomlkit.dumps(document)


def _write(path: Path, text: str, like: os.stat_result) -> None:
    """Write a file that others may read, or not, as they may that one."""

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with open(path, "w", encoding="utf-8", newline="", opener=private) as file:
        os.fchown(file.fileno(), like.st_uid, like.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _service(services: dict[str, Any], service: str, name: str) -> Any:
    if service not in services:
        advice = "is no service there any more; bring the file and the daemon together by 'loaded-mp reload'"
        raise ConfigError(Mistake(name, f"service {service!r}", advice))
    return services[service]


def _remove(service: Any, endpoint: Endpoint) -> None:
    backends = service.get("backend", ())
    place = next((place for place, each in enumerate(backends) if _endpoint(each) == endpoint), None)
    if place is None:
        return
    gone = backends[place]
    del backends[place]
    if isinstance(gone, Table) and place:  # what stands behind it belongs to what comes next
        backends[place - 1].value.body.extend(_behind(gone)[1:])


def _add(service: Any, backend: Backend) -> None:
    if "backend" not in service:  # those that it has are discovered
        service["backend"] = tomlkit.aot()
    backends = service["backend"]
    if any(_endpoint(each) == backend.address for each in backends):
        return
    last = backends[-1] if len(backends) else None
    new = tomlkit.table() if last is None or isinstance(last, Table) else tomlkit.inline_table()
    new.update(backend.model_dump(mode="json", exclude_defaults=True))
    if isinstance(last, Table):
        behind = _behind(last)
        last.value.body.append((None, Whitespace("\n")))
        new.value.body.extend(behind)
    backends.append(new)


def _endpoint(backend: Any) -> Endpoint:
    return Endpoint.read(str(backend["address"]))


def _behind(table: Table) -> list[_Line]:
    """Take away what stands behind a table's settings: from the first blank line on."""
    body = table.value.body
    last = max(place for place, (key, _) in enumerate(body) if key is not None)
    blank = (place for place in range(last + 1, len(body)) if isinstance(body[place][1], Whitespace))
    end = next(blank, len(body))
    behind = body[end:]
    del body[end:]
    return behind
