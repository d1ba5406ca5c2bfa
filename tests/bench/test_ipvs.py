"""Schedulers choose as those of IPVS do, which is asked in a guest where one can be had."""

from typing import Any

import pytest

from bench.guest import has_guest
from bench.ipvs import measure
from bench.page import FOLDER, read


def agrees(found: dict[str, Any]) -> None:
    """Say what is not as in IPVS."""
    for name, each in found["choices"].items():
        if not name.startswith("wrr"):
            assert each["same"] == each["choices"] > 0, name
    for both in found["rounds"].values():
        assert both["ipvs"] == both["ours"]
        assert both["ours"][0] == both["ours"][1] > 0
    for name, both in found["hashing"].items():
        for each in both.values():
            assert (each["stay"], each["lost"]) == (1, 0)
            assert each["most"] < 1.3
            assert each["moved"] < 0.05 if name == "mh" else each["moved"] > 0.5


def test_what_was_recorded_agrees() -> None:
    agrees(read(FOLDER)["ipvs"])


@pytest.mark.long
@pytest.mark.skipif(not has_guest(), reason="there is no User-Mode Linux, or we are not root")
def test_the_same_connections_get_the_same_backends() -> None:
    agrees(measure())
