"""The process in which an operator's scheduler is asked once: a program of its own, by its path.

It reads a question from its standard input, opens the file, gives up its privileges, and only then runs what
is in the file. Nothing of loaded-mp is imported, so that it starts soon and has little to break.
"""

import json
import os
import resource
import stat
import sys
from collections import namedtuple


class Backend(namedtuple("Backend", "name address weight configured_weight backup up flows rates checks")):
    """As the operator's function gets it; docs/schedulers.md says what the fields are."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(self.address)


#: What one check of a backend found the last time.
Check = namedtuple("Check", "check passed said took_s")

_MOST_BYTES = 1 << 20
_MEMORY_BYTES = 256 << 20
_OPEN_FILES = 64

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes its time
    from typing import Any

    Question = dict[str, Any]
    Answer = dict[str, Any]


class RefusedError(Exception):
    """What the file or its answer is not as it has to be; the text says why."""


def main() -> None:
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    question = json.load(sys.stdin.buffer)
    try:
        answer = ask(question)
    except BaseException as error:  # sys.exit, too
        answer = {"error": explained(error), "line": line_of(error, question["path"])}
    left = json.dumps(answer).encode()
    while left:
        left = left[os.write(answers, left) :]
    os._exit(0)  # threads of the operator's need not be waited for


def ask(question: "Question") -> "Answer":
    """What the function `slots` of the file gives. Raises whatever it does."""
    path, source = question["path"], read(question["path"])
    give_up_privileges(question)
    names = {"__name__": "scheduler", "__file__": path}
    exec(compile(source, path, "exec"), names)
    slots = names.get("slots")
    if not callable(slots):
        raise RefusedError("found no function slots(backends) in it")
    backends = [
        Backend(**{**each, "checks": tuple(Check(*check) for check in each["checks"])})
        for each in question["backends"]
    ]
    return understood(slots(list(backends)), backends) if backends else {"slots": []}


def read(path: str) -> bytes:
    """The file. Raises RefusedError unless it belongs to root or us, and nobody else may write it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(error.strerror) from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError("found something else than a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise RefusedError(f"belongs to user {found.st_uid}, expected root: chown root {path}")
        if found.st_mode & 0o022:
            raise RefusedError(f"others than its owner may write it: chmod go-w {path}")
        source = file.read(_MOST_BYTES + 1)
    if len(source) > _MOST_BYTES:
        raise RefusedError("is longer than 1 MiB")
    return source


def give_up_privileges(question: "Question") -> None:
    """Be the user that is asked for, and use little of the machine."""
    limits = (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, question["cpu_s"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
    )
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(question["gid"])
        os.setuid(question["uid"])


def understood(answer: object, backends: "list[Backend]") -> "Answer":
    """Places of backends, one for each slot, or a share for each backend. Raises RefusedError."""
    places: dict[str, int | None] = {}
    for place, each in enumerate(backends):
        places[each.name] = None if each.name in places else place
    places.update((each.address, place) for place, each in enumerate(backends))

    def place_of(one: object) -> int:
        name = one.address if isinstance(one, Backend) else one
        place = places.get(name) if isinstance(name, str) else None
        if place is None:
            raise RefusedError(f"slots() gave {shown(one)}, which is not one of the backends that it got")
        return place

    if isinstance(answer, dict):
        shares = [0.0] * len(backends)
        for one, share in answer.items():
            if not isinstance(share, int | float) or not 0 <= share < float("inf"):
                raise RefusedError(f"slots() gave {shown(share)} as a share, expected a number, 0 or more")
            shares[place_of(one)] = share
        return {"shares": shares}
    if isinstance(answer, list | tuple) and not isinstance(answer, Backend):
        return {"slots": [place_of(one) for one in answer]}
    raise RefusedError(
        f"slots() gave {shown(answer)}, expected a list of backends, or a dict of their shares"
    )


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def explained(error: BaseException) -> str:
    if isinstance(error, RefusedError):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def line_of(error: BaseException, path: str) -> int:
    """The line of the file that is at fault; 0 if none is."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


if __name__ == "__main__":
    main()
