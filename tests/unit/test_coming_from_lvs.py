"""docs/coming-from-lvs.md, row by row: what stands on the left becomes what stands on the right.

A row's words come in the place of `...` in the block above its table. On the right are settings, each found
in one table of what was imported, or `not there:` and the reason that import gives. Those of the last table
are commands.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from loaded_mp.cli.main import main
from loaded_mp.importing import found_in
from loaded_mp.importing.writer import Imported, written
from loaded_mp.schedulers import SCHEDULERS

PAGE = (Path(__file__).parents[2] / "docs/coming-from-lvs.md").read_text()
NOT_THERE = "not there: "


class Row(NamedTuple):
    template: str  #: empty: it is about a command
    there: str
    here: str


def rows() -> Iterator[Row]:
    template = ""
    for part in re.split(r"^(?=```|## |\| )", PAGE, flags=re.MULTILINE):
        if part.startswith("```text"):
            template = part.removeprefix("```text\n")
        elif part.startswith("##"):
            template = ""
        elif row := re.match(r"\| (?:`(.*?)` )?\| ((?:`|not there).*?) \|", part):
            yield Row(template, row[1] or "", row[2])


ROWS = list(rows())
SETTINGS = [row for row in ROWS if row.template]
COMMANDS = [row for row in ROWS if not row.template]


def imported(text: str) -> Imported:
    return written([found_in(text, "f")], ["192.0.2.99"])


def tables(found: Imported) -> Iterator[dict[str, Any]]:
    for service in tomllib.loads(found.toml)["service"]:
        yield service
        yield from service.get("backend", ())
        yield from service.get("check", ())


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.there or "nothing said")
def test_a_word_becomes_what_the_page_says(row: Row) -> None:
    words = row.there.replace("{", "{\n").replace("}", "\n}")
    found = imported(row.template.replace("...", words))
    if row.here.startswith(NOT_THERE):
        assert row.here.removeprefix(NOT_THERE) in [each.text for each in found.left_out]
        return
    assert not found.left_out
    wanted = [tomllib.loads(span) for span in re.findall(r"`(.*?)`", row.here)]
    assert wanted
    for setting in wanted:
        assert any(setting.items() <= each.items() for each in map(flat, tables(found))), setting


def flat(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in ("backend", "check")}


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.there)
def test_a_command_has_its_like(row: Row) -> None:
    if row.here.startswith(NOT_THERE):
        found = imported(row.there + "\n-A -t 192.0.2.10:80\n-a -t 192.0.2.10:80 -r 10.0.0.1 -m")
        assert row.here.removeprefix(NOT_THERE) in [each.text for each in found.left_out]
        return
    (span,) = re.findall(r"`(.*?)`", row.here)
    program, name, *words = span.split()
    assert program == "loaded-mp"
    context = main.make_context("loaded-mp", [name])
    command = main.get_command(context, name)
    assert command
    options = {flag for each in command.params for flag in each.opts if isinstance(each, click.Option)}
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    assert options >= {word for word in words if word.startswith("-")}
    assert len([word for word in words if not word.startswith("-")]) <= len(arguments)


def test_the_page_has_every_scheduler_and_many_rows() -> None:
    named = {name for row in SETTINGS for name in re.findall(r'`scheduler = "(\w+)"`', row.here)}
    assert named == set(SCHEDULERS)
    assert len(SETTINGS) > 50
    assert len(COMMANDS) > 15
