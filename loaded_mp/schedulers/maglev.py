"""Filling Maglev's table."""

import numpy as np
import numpy.typing as npt

from loaded_mp.compiled import compiled

Longs = npt.NDArray[np.int64]


@compiled
def fill_table(turns: Longs, offsets: Longs, skips: Longs, state: Longs, table: Longs) -> None:
    """Let backends take slots of `table`, whose size is a prime and whose entries are -1, in turn.

    All are int64[n] but `state`, zeros of [2, n]. A backend takes the next free slot of its own permutation,
    which begins at its offset and goes on by its skip. Who has fewer `turns` than the one with the most has
    its turn as much less often.
    """
    most = 0
    for turn in turns:
        most = max(most, turn)
    taken = 0
    while taken < table.size:
        for backend in range(turns.size):
            state[1, backend] += turns[backend]
            if turns[backend] == 0 or state[1, backend] < most:
                continue
            state[1, backend] -= most
            slot = (offsets[backend] + state[0, backend] * skips[backend]) % table.size
            while table[slot] >= 0:
                state[0, backend] += 1
                slot = (offsets[backend] + state[0, backend] * skips[backend]) % table.size
            state[0, backend] += 1
            table[slot] = backend
            taken += 1
            if taken == table.size:
                return
