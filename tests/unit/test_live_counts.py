"""A flow counts from its first packet until it ends, whatever ends it, against slow models."""

from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

import numpy as np
from building import service
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from world import World

from loaded_mp.datapath.messages import HOOK_POSTROUTING, HOOK_PREROUTING
from loaded_mp.flows.table import MAX_VALUE, WAYS
from loaded_mp.memory.counters import BackendCounter, FlowTableCounter
from loaded_mp.memory.snapshot import CLOSING
from loaded_mp.packet.reasons import Reason
from loaded_mp.supervisor.sweep import Expire

VIP = "192.0.2.10"
BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
TCP_IDLE_S, FIN_IDLE_S, UNCONFIRMED_S = 100, 20, 10


@dataclass
class Connection:
    """What a model knows of one."""

    backend: int
    deadline_s: int
    ending: bool = False


@cache
def _segment(client: int, place: int | None, flags: str) -> bytes:
    """What a client says, or a backend to it."""
    port = 5_000 + client
    if place is None:
        return bytes(IP(src="198.51.100.7", dst=VIP) / TCP(sport=port, dport=80, flags=flags))
    return bytes(IP(src=BACKENDS[place], dst="198.51.100.7") / TCP(sport=80, dport=port, flags=flags))


class Counts(World):
    """A world with clocks and counts to look at."""

    def __init__(self, scheduler: str, flows: int) -> None:
        self.web = service(
            "web", [VIP], dict.fromkeys(BACKENDS, 1), scheduler=scheduler, affinity="connection",
            tcp_idle_s=TCP_IDLE_S, tcp_fin_idle_s=FIN_IDLE_S, unconfirmed_s=UNCONFIRMED_S,
        )  # fmt: skip
        super().__init__(self.web, flows=flows)
        self.mark = 0  #: as conntrack keeps it
        self.numbers = [self.backends["web", address] for address in BACKENDS]

    def says(self, client: int, flags: str) -> int | None:
        """The place of the backend that a client's segment goes to."""
        decision, result = self.decide(_segment(client, None, flags), HOOK_PREROUTING)
        if decision.reason != Reason.OK:
            return None
        self.mark = decision.mark
        return result[19] - 1

    def answers(self, client: int, place: int, flags: str) -> None:
        """A backend's segment passes."""
        self.decide(_segment(client, place, flags), HOOK_POSTROUTING, mark=self.mark)

    def sweep(self) -> None:
        """Idle flows are taken out."""
        with patch("loaded_mp.supervisor.sweep.time.monotonic", return_value=self.now_s):
            Expire(self.memory).visit(0, self.table.words.size)

    @property
    def counts(self) -> list[int]:
        active: list[int] = self.memory.active.sum(axis=0)[self.numbers].tolist()
        return active


#: A client, and what it or its backend does; "": time passes.
moves = st.tuples(
    st.integers(0, 7), st.sampled_from(["S", "A", "FA", "R", "answer SA", "answer A", "answer FA", ""])
)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(moves, min_size=20, max_size=60), seconds=st.lists(st.integers(1, 60), min_size=60))
def test_counts_are_those_of_a_model(steps: list[tuple[int, str]], seconds: list[int]) -> None:
    world = Counts("lc", 64)
    there: dict[int, Connection] = {}
    for (client, what), passes_s in zip(steps, seconds, strict=False):
        known = there.get(client)
        if what == "":
            world.now_s += passes_s
            world.sweep()
            there = {each: known for each, known in there.items() if known.deadline_s >= world.now_s}
        elif what.startswith("answer"):
            flags = what.split()[1]
            if known:
                world.answers(client, known.backend, flags)
                _renewed(known, world.now_s, UNCONFIRMED_S if flags == "SA" else TCP_IDLE_S)
                _ended(known, world.now_s, "F" in flags)
        else:
            counts = [sum(k.backend == n and not k.ending for k in there.values()) for n in range(3)]
            got = world.says(client, what)
            assert got is not None
            if known is None or (known.ending and what == "S"):
                assert got == counts.index(min(counts)), "the fewest open flows, the first of equals"
                there[client] = Connection(got, world.now_s + (TCP_IDLE_S if known else UNCONFIRMED_S))
            else:
                assert got == known.backend
                _renewed(known, world.now_s, TCP_IDLE_S)
                _ended(known, world.now_s, "F" in what or "R" in what)
        assert world.counts == [
            sum(k.backend == n and not k.ending for k in there.values()) for n in range(3)
        ]
    world.now_s += 1_000
    world.sweep()
    assert world.counts == [0, 0, 0]


def _renewed(known: Connection, now_s: int, idle_s: int) -> None:
    """A packet has come."""
    known.deadline_s = max(known.deadline_s, now_s + (min(idle_s, FIN_IDLE_S) if known.ending else idle_s))


def _ended(known: Connection, now_s: int, ends: bool) -> None:
    if ends and not known.ending:
        known.ending, known.deadline_s = True, now_s + FIN_IDLE_S


@settings(deadline=None, max_examples=20)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(["S", "S", "A", "FA", "R", "", "down"])),
        min_size=30,
        max_size=80,
    )
)
def test_counts_hold_where_flows_give_way_to_others(steps: list[tuple[int, str]]) -> None:
    world = Counts("twos", 2)  # one bucket: all of them meet
    assert world.table.words.size == WAYS
    for client, what in steps:
        if what == "":
            world.now_s += client
            world.sweep()
        elif what == "down":
            down = BACKENDS[client % 3 : client % 3 + 1] if client % 2 else []
            world.publish(world.web, down=tuple(down))
        else:
            world.says(client, what)
        values = [int(word) & MAX_VALUE for word in world.table.words if word >> np.uint64(24)]
        assert world.counts == [values.count(number) for number in world.numbers]
        assert all((value & ~CLOSING) in world.numbers for value in values)
    new = int(world.memory.backends[0, :, BackendCounter.NEW_FLOWS].sum())
    evicted = int(world.memory.flow_table[0, FlowTableCounter.EVICTIONS])
    assert new >= sum(world.counts)
    assert evicted <= new
