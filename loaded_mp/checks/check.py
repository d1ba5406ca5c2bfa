"""What a check is."""

import errno
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import re2
from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from loaded_mp.fields import AddressField, Endpoint, Port, Seconds, Settings

#: What is read of an answer at most; the rest is never fetched.
MAX_ANSWER_BYTES = 65_536
#: What of an answer is shown to people.
_SHOWN_CHARACTERS = 60

#: What the kernel says where this machine lacks something. It says nothing of a backend.
_LOCAL = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.EAGAIN,
    errno.EPERM,
    errno.EACCES,
    errno.EAFNOSUPPORT,
)


class Fault(Exception):  # noqa: N818  # a word of ours: it is no error of the program
    """A backend does not serve; the text says why, as in "refused"."""


class LocalError(Exception):
    """This machine cannot ask; the text says why. It says nothing of a backend."""


class SilentError(Exception):
    """Who was asked has nothing to say, and what was said before holds; the text says how."""


@dataclass(frozen=True)
class Finding:
    """What an attempt found. What is None was not said, and stays as it was."""

    fault: str | None = None  #: why the backend does not serve; None: it does
    said: str = "passed"  #: in place of a fault, as in "accepted"
    weight: int | None = None  #: in place of the configured one
    percent: int | None = None  #: of the weight
    wanted: Literal["ready", "drain", "maintenance"] | None = None  #: what the backend asks for
    certificate_expires_s: float | None = None  #: Unix time

    def after(self, before: "Finding") -> "Finding":
        """This, with what only the one before has said."""
        names = ("weight", "percent", "wanted", "certificate_expires_s")
        kept = {name: getattr(before, name) for name in names if getattr(self, name) is None}
        return replace(self, **kept) if any(each is not None for each in kept.values()) else self


class Check(Settings):
    """The settings that all checks have, and what they can do. `str()` says what is asked for."""

    type: str
    address: AddressField | None = None  #: who is asked in place of the backend
    interval_s: Seconds = 2.0
    fast_interval_s: Seconds | None = None  #: while results change; None: as `interval_s`
    timeout_s: Seconds = 1.0
    rise: int = Field(default=2, ge=1, le=100)  #: successes until a backend is up
    fall: int = Field(default=3, ge=1, le=100)  #: failures until it is down

    #: Whether a late attempt is one more fault; else nothing is known by it.
    silence_is_fault: ClassVar[bool] = True

    @cached_property
    def key(self) -> int:
        """The same number for equal checks, in every process."""
        return zlib.crc32(self.model_dump_json().encode())

    def port_of(self, own: int | None, listened: int | None) -> int | None:
        """The port to ask at; None: none. `own`: a backend's own, `listened`: the service's first."""
        return None

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Ask a backend once, at the port of `port_of`. May be cut off by `timeout_s`.

        Raises Fault if it does not serve, OSError as the kernel does, LocalError if it could not be asked,
        SilentError if nothing is to be learnt.
        """
        raise NotImplementedError

    def question(self, endpoint: Endpoint) -> str:
        """What is asked, for people, as in "connect to 10.0.0.1:80"."""
        raise NotImplementedError


class PortCheck(Check):
    """The settings of a check that asks at a port."""

    port: Port | None = None  #: None: the backend's own, else the usual one, else that of the service

    usual_port: ClassVar[int | None] = None  #: of its protocol

    def port_of(self, own: int | None, listened: int | None) -> int | None:
        """What is said of it comes first."""
        return self.port or own or self.usual_port or listened

    @property
    def at_port(self) -> str:
        """As in " port 80"; empty where the port goes without saying."""
        return f" port {self.port}" if self.port else ""


def is_local(error: OSError) -> bool:
    """Whether an error of a system call is about this machine and not about who was asked."""
    return error.errno in _LOCAL


def fault_of(error: OSError) -> str:
    """What the kernel says of who was asked, in words."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError):
        return "reset"
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__


def shown(answer: str) -> str:
    """An answer as a line shows it, its beginning only."""
    more = "..." if len(answer) > _SHOWN_CHARACTERS else ""
    return f"{answer[:_SHOWN_CHARACTERS]!r}{more}"


def _bytes(text: str) -> str:
    if any(ord(c) > 0xFF for c in text):
        raise ValueError("expected bytes: characters up to \\u00ff")
    return text


#: Characters up to U+00FF, each a byte, so that every protocol can be spoken: "PING\r\n", "\u0000\u0001".
Bytes = Annotated[str, Field(max_length=4_096), AfterValidator(_bytes)]


def _expression(text: str) -> str:
    try:
        _compiled(text)
    except re2.error as error:
        said = error.args[0]
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise ValueError(f"expected a regular expression ({said})") from None
    return text


#: A regular expression, of the kind that takes linear time whatever a backend answers (RE2).
Expression = Annotated[str, Field(max_length=1_024), AfterValidator(_expression)]


def _compiled(expression: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    return re2.compile(expression, options)


def matches(expression: str, answer: str) -> bool:
    """Whether a regular expression is found in an answer."""
    return _compiled(expression).search(answer) is not None


class OneOfTypes:
    """Annotates a setting that is one of several models, told apart by `type`; without it, the first."""

    def __init__(self, models: Sequence[type[Check]]) -> None:
        self._models = {str(model.model_fields["type"].default): model for model in models}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schemas = {name: handler.generate_schema(model) for name, model in self._models.items()}
        return core_schema.tagged_union_schema(dict(schemas), discriminator=self._type_of)

    def _type_of(self, value: Any) -> Any:
        first = next(iter(self._models))
        if isinstance(value, dict):
            return value.get("type", first)
        return getattr(value, "type", first)
