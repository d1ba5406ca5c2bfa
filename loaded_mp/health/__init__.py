"""Checks of backends: they say up or down and why, and decide nothing."""
