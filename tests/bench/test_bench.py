"""The numbers in the documentation are those of the data, and no ratio has fallen to half of them."""

import json
from typing import Any

import pytest

from bench.main import chosen, measure_all
from bench.page import FOLDER, ROOT, page, read, with_summary
from bench.paths import dnat, loaded_mp, routing
from bench.report import GOALS, interval, ratio
from loaded_mp.memory.arena import why_no_arenas

pytestmark = pytest.mark.alone

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


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 0, 0), (5, 0, 4), (6, 0, 5), (10, 1, 8), (100, 39, 60)]
)
def test_where_a_median_lies(count: int, low: int, high: int) -> None:
    """Ranks 1 to 6, 2 to 9 and 40 to 61: the binomial distribution's."""
    assert interval([float(value) for value in range(count)]) == (low, high)


def reached(data: dict[str, Any], recorded: dict[str, Any]) -> dict[str, float]:
    """How much of each recorded ratio there is; only of goals that were measured both times."""
    found = {}
    for goal in GOALS:
        now, then = (ratio(each, goal.work, goal.path, goal.peer, goal.cpu) for each in (data, recorded))
        if now and then:
            more = data["works"][goal.work]["more_is_better"] and not goal.cpu
            found[f"{goal.work}: {goal.path} of {goal.peer}, {goal.cpu}"] = now / then if more else then / now
    return found


def regressions(data: dict[str, Any], recorded: dict[str, Any]) -> dict[str, float]:
    return {what: share for what, share in reached(data, recorded).items() if share < _GROSS}


def test_no_gross_regression(recorded: dict[str, Any]) -> None:
    """Of long packets, short ones and new connections, each beside a peer that is none of ours."""
    works = chosen(True, ("bulk-1", "http", "new"))
    fast = [loaded_mp("fast path", 2)] if not why_no_arenas() else []
    builders = (routing, dnat, loaded_mp("rewrite", 2), *fast, loaded_mp("conntrack", 2))
    data = measure_all(works, builders, 1, 1)
    assert len(reached(data, recorded["bench"])) == 2 * len(works) + len(fast) * (len(works) + 1)
    if regressions(data, recorded["bench"]):  # a noisy moment is no regression: look longer
        data = measure_all(works, builders, 5, 1)
    assert not regressions(data, recorded["bench"])


def test_a_regression_would_be_found(recorded: dict[str, Any]) -> None:
    slow = json.loads(json.dumps(recorded["bench"]))
    for each in slow["works"]["http"]["rounds"]["loaded-mp conntrack, 2 workers"]:
        each["value"] *= 0.4
    assert not regressions(recorded["bench"], recorded["bench"])
    assert len(regressions(slow, recorded["bench"])) == 1
