"""Asking an operator's scheduler, in bounded time and memory: its slots, or what is wrong with it."""

import asyncio
import json
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError

from loaded_mp.checks.check import LocalError
from loaded_mp.checks.program import run
from loaded_mp.schedulers.scheduler import Slots
from loaded_mp.schedulers.wrr import interleaved_within

#: It is killed after so long.
TIMEOUT_S = 2.0
_CHILD = Path(__file__).with_name("child.py")
#: Enough for a place in each of the most slots.
_MOST_BYTES = 1 << 20
#: Shares that are no whole numbers, or too large ones, become about so many slots.
_PARTS = 4_096
_MOST_SHARES = 1 << 31


class SchedulerError(Exception):
    """A scheduler gave no slots; the text says why, for people."""

    def __init__(self, path: str, line: int, text: str) -> None:
        super().__init__(text)
        self.place = f"{path}:{line}" if line else path


class CheckSeen(NamedTuple):
    """What one check of a backend found the last time."""

    check: str
    passed: bool | None
    said: str
    took_s: float | None


class BackendSeen(NamedTuple):
    """A backend as a scheduler sees it."""

    name: str
    address: str
    weight: int  #: effective; 0: it gets no new flows, whatever is answered
    configured_weight: int
    backup: bool
    up: bool
    flows: int  #: open now
    rates: dict[str, float]  #: per second, by the lower-case names of BackendCounter
    checks: tuple[CheckSeen, ...]


class Answer(BaseModel):
    """What a scheduler gave: slots in turn, or shares; both by the places of the backends that it got."""

    slots: list[int] | None = None
    shares: list[float] | None = None
    error: str = ""
    line: int = 0

    def filled(self, weights: Sequence[int], most: int) -> Slots:
        """The slots: uint16[n], places of backends, n <= `most`. Whose weight is 0 has none."""
        taking = np.array(weights, np.int64) > 0
        if self.slots is not None:
            places = np.array(self.slots, np.int64)
            return places[taking[places]].astype(np.uint16)
        shares = np.array(self.shares) * taking
        if (shares % 1).any() or shares.sum() > _MOST_SHARES:
            shares = np.ceil(shares / shares.sum() * _PARTS)
        return interleaved_within(shares.astype(np.int64), min(most, _PARTS))


async def ask(path: str, user: str, backends: Sequence[BackendSeen], most_slots: int) -> Answer:
    """What the scheduler in a file gives for these backends. Raises SchedulerError."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            with _question(path, user, backends) as question:
                ended = await run((sys.executable, "-I", "-S", str(_CHILD)), None, question, _MOST_BYTES)
    except TimeoutError:
        raise SchedulerError(path, 0, f"gave no slots within {TIMEOUT_S:g} s, and was killed") from None
    except LocalError as error:
        raise SchedulerError(path, 0, str(error)) from None
    try:
        answer = Answer.model_validate_json(ended.output)
    except ValidationError:
        what = f"ended with status {ended.status}" if len(ended.output) < _MOST_BYTES else "said too much"
        raise SchedulerError(path, 0, f"{what}, and gave no slots") from None
    if fault := answer.error or _fault(answer, [each.weight for each in backends], most_slots):
        raise SchedulerError(path, answer.line, fault)
    return answer


def _fault(answer: Answer, weights: Sequence[int], most_slots: int) -> str:
    """Why slots cannot be filled by an answer; empty: they can."""
    places = answer.slots or []
    if answer.shares is not None:
        places = [place for place, share in enumerate(answer.shares) if share > 0]
    if not all(0 <= place < len(weights) for place in places):
        return "slots() gave backends that there are not"
    if len(places) > most_slots:
        return f"slots() gave {len(places):,} slots, expected {most_slots:,} at the most (table_size)"
    if any(weights) and not any(weights[place] for place in places):
        return "slots() gave no backend that may have new flows"
    return ""


def _question(path: str, user: str, backends: Sequence[BackendSeen]) -> "_Memory":
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise LocalError(f"scheduler_user: there is no user {user!r}") from None
    asked = {
        "path": path,
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "cpu_s": int(TIMEOUT_S) + 1,
        "backends": [each._asdict() for each in backends],
    }
    return _Memory(json.dumps(asked).encode())


class _Memory:
    """A file without a name that holds some bytes, for as long as the context lasts."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> int:
        self._descriptor = os.memfd_create("loaded-mp-question", os.MFD_CLOEXEC)
        os.truncate(self._descriptor, len(self._data))
        os.pwrite(self._descriptor, self._data, 0)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
