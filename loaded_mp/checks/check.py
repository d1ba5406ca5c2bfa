"""What a check is."""

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from loaded_mp.fields import Address, Seconds, Settings

#: What the kernel says where this machine lacks something. It says nothing of a backend.
_LOCAL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN)


class Check(Settings):
    """The settings that all checks have, and what they can do. `str()` says what is asked for."""

    #: What an attempt did that found no fault.
    passed: ClassVar[str] = "passed"

    type: str
    interval_s: Seconds = 2.0
    timeout_s: Seconds = 1.0
    rise: int = Field(default=2, ge=1, le=100)  #: successes until a backend is up
    fall: int = Field(default=3, ge=1, le=100)  #: failures until it is down

    async def attempt(self, address: Address) -> str | None:
        """Ask a backend once: None if it serves, else why not, in words.

        May be cut off by `timeout_s`. Raises OSError if it could not be asked.
        """
        raise NotImplementedError

    def question(self, address: Address) -> str:
        """What is asked, for people, as in "connect to 10.0.0.1:80"."""
        raise NotImplementedError


def is_local(error: OSError) -> bool:
    """Whether an error of a system call is about this machine and not about who was asked."""
    return error.errno in _LOCAL


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
