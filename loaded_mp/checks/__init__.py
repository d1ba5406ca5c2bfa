"""Ways of asking whether a backend serves, one file each. They say what they found, and decide nothing."""

from loaded_mp.checks.check import Check
from loaded_mp.checks.tcp import TcpCheck

#: All of them; the first is meant where a configuration names no type.
CHECKS: tuple[type[Check], ...] = (TcpCheck,)
