"""Where the fields of the shared memory lie, for a program that is the same for every size of flow table."""

from loaded_mp.memory.segment import Field, size_of
from loaded_mp.memory.shared import shared_fields
from loaded_mp.memory.snapshot import MAX_WORKERS

#: The least that a table may hold: what lies in front of the table has the same place in all memories.
_FLOWS = 1


def field_of(name: str) -> Field:
    """A field of the shared memory."""
    return next(each for each in _fields() if each.name == name)


def offset_of(name: str) -> int:
    """Bytes in front of a field."""
    fields = _fields()
    names = [each.name for each in fields]
    return size_of(fields[: names.index(name)])


def _fields() -> list[Field]:
    return shared_fields(_FLOWS, MAX_WORKERS)
