"""What becomes of the flows of backends when other services are taken over. Pure."""

from collections.abc import Collection
from enum import StrEnum

from loaded_mp.services import Services


class Fate(StrEnum):
    """Of flows that do not stay where they are."""

    MOVE = "move"  #: with their next packet another backend is picked
    END = "end"  #: nobody answers any more


def fates(before: Services, after: Services, lost: Collection[int] = ()) -> dict[int, Fate]:
    """By backend id, of those that leave, and of those that stay but are `lost`: not usable any more.

    The flows of all others stay, whatever weights and schedulers are.
    """
    stay = {part.id for part in after.parts if part.backends}
    return {
        number: Fate.MOVE if part.id in stay else Fate.END
        for number, part in before.part_of.items()
        if number not in after.part_of or number in lost
    }
