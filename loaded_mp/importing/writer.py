"""Writing what was found as TOML: the model says what it takes, and what it does not is a comment."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loaded_mp.checks import CHECKS
from loaded_mp.config.draft import Fault, checked, in_file
from loaded_mp.config.errors import Mistake
from loaded_mp.config.model import Backend, Service
from loaded_mp.config.toml import toml_value
from loaded_mp.importing.found import Found, Setting, Table, Word, live
from loaded_mp.importing.virtual import services

_SPELLING = {"services": "service", "backends": "service.backend", "checks": "service.check"}
_ORDER = {
    name: row
    for row, name in enumerate(
        dict.fromkeys(
            [*Service.model_fields, "type", *Backend.model_fields]
            + [name for each in CHECKS for name in each.model_fields]
        )
    )
}
_WIDTH = 42  #: of what stands before a comment
_LONGEST = 120  #: characters of a word in a comment


@dataclass(frozen=True)
class Imported:
    """A file for us, and what is not in it."""

    toml: str  #: empty if no service is left
    left_out: tuple[Mistake, ...]
    notes: tuple[Mistake, ...]  #: what is carried over, and is not quite the same


def written(files: Iterable[Found], vips: Iterable[str]) -> Imported:
    """What was found in several files as one. `vips` are those of services whose file names no address."""
    root = Table(Word("", ""))
    own = [Setting(vip, Word("--vip", vip)) for vip in vips]
    root.tables["services"] = []
    for found in files:
        root.left_out += found.left_out
        for virtual in found.virtuals:
            root.tables["services"] += services(virtual, own)
    _name_apart(root.tables["services"])
    _settle(root)
    left_out = sorted(dict.fromkeys([*root.left_out, *_left_out(root)]), key=in_file)
    toml = "\n".join(_file(root)) + "\n" if live(root.tables["services"]) else ""
    return Imported(toml, tuple(left_out), tuple(dict.fromkeys(_notes(root))))


def _name_apart(tables: list[Table]) -> None:
    """Give each service a name of its own."""
    times: Counter[str] = Counter()
    taken = {str(each.value("name")) for each in tables}
    for table in tables:
        name = str(table.value("name"))
        times[name] += 1
        if times[name] > 1:
            number = times[name]
            while f"{name}-{number}" in taken:
                number += 1
            taken.add(f"{name}-{number}")
            table.put("name", f"{name}-{number}", table.word)


def _settle(root: Table) -> None:
    """Refuse what the model refuses, until it takes the rest."""
    while live(root.tables["services"]):
        _, faults = checked(root.plain())
        if not faults:
            return
        for table, setting, fault in [(*_meant(root, each), each) for each in faults]:
            _refuse(table, setting, fault)


def _meant(root: Table, fault: Fault) -> tuple[Table, Setting | None]:
    """The table that a fault lies in, and the setting that it is about, if there is one."""
    table, rest = root, list(fault.location)
    while len(rest) > 1 and isinstance(rest[1], int) and rest[0] in table.tables:
        table, rest = live(table.tables[str(rest[0])])[rest[1]], rest[2:]
    setting = table.settings.get(str(rest[0])) if rest else None
    if isinstance(setting, list):
        row = rest[1] if len(rest) > 1 else None
        return table, live(setting)[row] if isinstance(row, int) else None
    return table, setting


def _refuse(table: Table, setting: Setting | None, fault: Fault) -> None:
    """Take out what the model refuses: a setting, or the table that cannot be without it."""
    if setting is None:
        _refuse_without(table, str(fault.location[-1]), fault)
    elif not setting.refused:
        setting.refused = fault.text
        for name, rows in table.settings.items():
            if isinstance(rows, list) and setting in rows and not live(rows):
                # To listen to nothing is to listen to everything.
                table.refused = table.refused or f"nothing is left of its {name}"
    elif fault.absent:
        table.word, table.refused, setting.refused = setting.word, table.refused or setting.refused, ""


def _refuse_without(table: Table, name: str, fault: Fault) -> None:
    """A fault may be about what a table lacks, or about a setting of the tables in it."""
    inner = [each.settings.get(name) for tables in table.tables.values() for each in live(tables)]
    about = [each for each in inner if isinstance(each, Setting) and not each.refused]
    for setting in about:
        setting.refused = fault.text
    if not about:
        why = f"nothing is left of its {name}" if name in table.tables else f"{name}: {fault.text}"
        table.refused = table.refused or table.advice.get(name, why)


def _nodes(table: Table) -> Iterator[tuple[str, Setting | Table]]:
    """Its settings and tables that stand in the file, and what is in those."""
    for name, setting in table.settings.items():
        for each in setting if isinstance(setting, list) else [setting]:
            yield name, each
    for name, tables in table.tables.items():
        for inner in tables:
            yield name, inner
            yield from _nodes(inner)


def _left_out(root: Table) -> Iterator[Mistake]:
    for _, node in _nodes(root):
        if node.refused:
            yield node.word.left_out(node.refused)
        if isinstance(node, Table):
            yield from node.left_out


def _notes(root: Table) -> Iterator[Mistake]:
    for _, node in _nodes(root):
        if isinstance(node, Table) and node.note and not node.refused:
            yield Mistake(node.word.place, node.word.text, node.note)


def _file(root: Table) -> Iterator[str]:
    yield "# What this machine has of addresses and routes stays as it is; [network] can set it up."
    yield from map(_left, sorted(root.left_out, key=in_file))
    for table in root.tables["services"]:
        yield from _table("services", table)


def _table(name: str, table: Table, prefix: str = "") -> Iterator[str]:
    """A table and those in it; one that is refused is a comment."""
    yield ""
    if table.refused:
        yield _left(table.word.left_out(table.refused))
        prefix = "#"
    yield _line(f"{prefix}[[{_SPELLING[name]}]]", table.word, table.note)
    for key in sorted(table.settings, key=lambda each: _ORDER.get(each, len(_ORDER))):
        yield from _setting(key, table.settings[key], prefix)
    yield from map(_left, sorted(table.left_out, key=in_file))
    for inner_name in ("checks", "backends"):
        for inner in table.tables.get(inner_name, ()):
            yield from _table(inner_name, inner, prefix)


def _setting(key: str, setting: Setting | list[Setting], prefix: str) -> Iterator[str]:
    if isinstance(setting, Setting):
        if setting.refused:
            yield _left(setting.word.left_out(setting.refused))
            prefix = "#"
        yield _line(f"{prefix}{key} = {toml_value(setting.value)}", setting.word, setting.note)
    elif not setting:
        return
    elif len(setting) == 1 and not setting[0].refused:
        (one,) = setting
        yield _line(f"{prefix}{key} = [{toml_value(one.value)}]", one.word, one.note)
    else:
        yield f"{prefix}{key} = ["
        for each in setting:
            if each.refused:
                yield _left(each.word.left_out(each.refused))
            mark = prefix or ("#" if each.refused else "")
            yield _line(f"{mark}    {toml_value(each.value)},", each.word, each.note)
        yield f"{prefix}]"


def _line(text: str, word: Word, note: str) -> str:
    comment = _comment(f"{word.place} {word.text}{f'; {note}' if note else ''}")
    return f"{text:<{_WIDTH}} # {comment}"


def _left(mistake: Mistake) -> str:
    return f"# left out: {_comment(str(mistake))}"


def _comment(text: str) -> str:
    """A text as a comment of TOML may have it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= 2 * _LONGEST else f"{shown[: 2 * _LONGEST]}..."
