"""What holds for all tests."""

from collections.abc import Generator

import numba
import numpy as np
import pytest

from loaded_mp.lab.interrupt import interrupt_on_signals
from loaded_mp.lab.lab import Lab

# Interpreted, the 64-bit arithmetic of the compiled code wraps around as it does compiled.
if numba.config.DISABLE_JIT:
    np.seterr(over="ignore")


def pytest_configure() -> None:
    # A run that is ended from outside takes down what it has built.
    interrupt_on_signals()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # The next test of the same lab starts a daemon of its own.
    report = yield
    if call.when == "call" and report.failed:
        for each in getattr(item, "funcargs", {}).values():
            if isinstance(each, Lab):
                each.stop_daemons()
    return report
