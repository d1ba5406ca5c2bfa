"""What holds for all tests."""

import numba
import numpy as np

from loaded_mp.lab.interrupt import interrupt_on_signals

# Interpreted, the 64-bit arithmetic of the compiled code wraps around as it does compiled.
if numba.config.DISABLE_JIT:
    np.seterr(over="ignore")


def pytest_configure() -> None:
    # A run that is ended from outside takes down what it has built.
    interrupt_on_signals()
