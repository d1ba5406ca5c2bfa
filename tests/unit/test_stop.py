"""loaded-mp stop: it waits until the daemon is gone."""

import pytest
from click.testing import CliRunner, Result

from loaded_mp.cli import stop
from loaded_mp.control.client import ControlError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a daemon was asked that ends after two looks and takes all back."""
    asked: list[str] = []
    looks = iter((True, True, False))
    monkeypatch.setattr(stop, "ask", lambda command, _: asked.append(command))
    monkeypatch.setattr(stop, "is_running", lambda: next(looks))
    monkeypatch.setattr(stop, "left_over", lambda: False)
    return asked


def invoke() -> Result:
    return CliRunner().invoke(stop.command, [])


def test_it_waits(asked: list[str]) -> None:
    result = invoke()
    assert (result.exit_code, result.output, asked) == (0, "stopped\n", ["stop"])


def test_not_for_ever(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_DEADLINE_S", -1.0)
    result = invoke()
    assert result.exit_code == 1
    assert "it has not ended" in result.output


@pytest.mark.usefixtures("asked")
def test_what_is_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "left_over", lambda: True)
    result = invoke()
    assert result.exit_code == 1
    assert "'loaded-mp cleanup' takes it back" in result.output


def test_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(command: str, answer_type: object) -> None:
        raise ControlError("no loaded-mp runs")

    monkeypatch.setattr(stop, "ask", ask)
    result = invoke()
    assert (result.exit_code, result.output) == (1, "Error: no loaded-mp runs\n")
