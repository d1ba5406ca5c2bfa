"""The numbers in the documentation are those of the data, and no ratio has fallen to half of them."""

import json
from typing import Any

import pytest

from bench.main import measure_all
from bench.page import FOLDER, ROOT, page, read, with_summary
from bench.report import GOALS, ratio

#: Less than this share of the recorded ratio is a regression and no noise.
_GROSS = 0.5


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return read(FOLDER)


def test_every_figure_in_the_documentation_is_of_the_last_run(recorded: dict[str, Any]) -> None:
    assert (FOLDER / "README.md").read_text() == page(recorded)
    readme = (ROOT / "README.md").read_text()
    assert readme == with_summary(readme, recorded["bench"])


def test_the_last_run_had_enough_rounds(recorded: dict[str, Any]) -> None:
    assert recorded["bench"]["rounds"] >= 5
    assert recorded["paper"]["rounds"] >= 5


def regressions(data: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    found = []
    for goal in GOALS:
        now, then = (ratio(each, goal.work, goal.path, goal.peer) for each in (data, recorded))
        if now is None or then is None:
            continue
        better = now / then if data["works"][goal.work]["more_is_better"] else then / now
        if better < _GROSS:
            found.append(f"{goal.work}: {goal.path} of {goal.peer} is {now:.2f}, was {then:.2f}")
    return found


def test_no_gross_regression(recorded: dict[str, Any]) -> None:
    works = ("bulk-1", "bulk-4x4", "http", "new", "udp")
    worse = regressions(measure_all(True, 2, 1, works), recorded["bench"])
    if worse:  # a noisy moment is no regression: look longer
        worse = regressions(measure_all(True, 5, 1, works), recorded["bench"])
    assert not worse


def test_a_regression_would_be_found(recorded: dict[str, Any]) -> None:
    slow = json.loads(json.dumps(recorded["bench"]))
    for each in slow["works"]["http"]["rounds"]["loaded-mp conntrack, 2 workers"]:
        each["value"] *= 0.4
    assert regressions(recorded["bench"], recorded["bench"]) == []
    assert len(regressions(slow, recorded["bench"])) == 1
