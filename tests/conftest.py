"""A run that is ended from outside takes down what it has built."""

from loaded_mp.lab.interrupt import interrupt_on_signals


def pytest_configure() -> None:
    interrupt_on_signals()
