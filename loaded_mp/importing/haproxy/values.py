"""What stands in a line of HAProxy's: addresses, times, words with and without values."""

import math
import re
from ipaddress import ip_address

from loaded_mp.importing.found import Word
from loaded_mp.importing.haproxy.sections import Section

#: Words behind an address, by name: the value, empty if there is none, and both as they stand there.
Words = dict[str, tuple[str, Word]]

_TIME = re.compile(r"([0-9]{1,15})(us|ms|s|m|h|d)?")
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> float | str:
    """Of a duration, which is in milliseconds unless it says so; what is none stays as it is."""
    found = _TIME.fullmatch(text)
    if not found:
        return text
    time = int(found[1]) * _UNITS_S[found[2] or "ms"]
    return int(time) if time == int(time) else time


def whole(time_s: float) -> int:
    """Whole seconds, rounded up, at least one."""
    return max(1, math.ceil(time_s))


def time_of(section: Section, key: str) -> float | None:
    """The seconds that a line of a section says, None if it is not there, or wrong."""
    time_s = seconds(section.value(key))
    return None if isinstance(time_s, str) else time_s


def words_behind(words: list[str], place: str, with_value: set[str], before: Words) -> Words:
    """What stands behind an address, where `before` holds already."""
    found = dict(before)
    rest = iter(words)
    for name in rest:
        value = next(rest, "") if name in with_value else ""
        if name.startswith("no-"):
            found.pop(name[3:], None)
        else:
            found[name] = value, Word(place, f"{name} {value}".rstrip())
    return found


def address_and_port(text: str) -> tuple[str, str]:
    """Of `ADDRESS:PORT`, `[ADDRESS]:PORT`, `ADDRESS` and so on; either may be empty."""
    text = re.sub(r"^ipv[46]@", "", text)
    address, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        address, port = text, ""
    return address.removeprefix("[").removesuffix("]"), port


def is_address(text: str) -> bool:
    """Whether it is one, of IPv4 or IPv6."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
