"""What becomes of the instructions of an object file."""

import pytest

from loaded_mp.bpf import instruction
from loaded_mp.compiled import MARKER
from loaded_mp.fastpath.object import _let_loops_end

MARKS, SETS, EXIT = instruction(0xB7, 3, value=MARKER), instruction(0xB7, 5, value=7), instruction(0x95)
EQUAL, NOT_EQUAL, GOTO, MAY_GOTO = 0x15, 0x55, 0x05, 0xE5


@pytest.mark.parametrize(
    ("compares", "becomes"),
    [
        (instruction(EQUAL, 3, offset=9), instruction(GOTO) + instruction(MAY_GOTO, offset=9)),
        (
            instruction(NOT_EQUAL, 3, offset=-4),
            instruction(MAY_GOTO, offset=1) + instruction(GOTO, offset=-4),
        ),
    ],
)
def test_a_loop_may_end(compares: bytes, becomes: bytes) -> None:
    for before, after in ((b"", SETS), (SETS, b""), (EXIT, SETS + SETS)):
        code = bytearray(before + MARKS + after + compares + EXIT)
        _let_loops_end(code)
        assert code == before + after + becomes + EXIT


@pytest.mark.parametrize(
    "code",
    [
        MARKS + instruction(EQUAL, 4),
        MARKS + instruction(EQUAL, 3, value=1),
        MARKS + EXIT,
        instruction(GOTO, offset=2) + MARKS + SETS + instruction(EQUAL, 3),
    ],
    ids=["another register", "another number", "no comparison", "jumped into"],
)
def test_what_does_not_ask_is_told(code: bytes) -> None:
    with pytest.raises(ValueError, match="should ask whether a loop goes on"):
        _let_loops_end(bytearray(code))
