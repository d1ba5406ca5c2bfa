"""Snapshots for tests, built from services as a configuration has them."""

import os
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.flows.flow import Flow
from loaded_mp.memory.segment import new_segment
from loaded_mp.memory.snapshot import Snapshot, snapshot_fields, snapshot_from
from loaded_mp.packet.address import Address128
from loaded_mp.services import Ids, Part
from loaded_mp.supervisor.affinities import Affinities
from loaded_mp.supervisor.snapshots import Past, fill
from loaded_mp.supervisor.state import BackendState, Stops


def many(number: int) -> int:
    """So many as machine code goes through; interpreted, which looks at bounds besides, a quarter will do."""
    return number // 4 if numba.config.DISABLE_JIT else number


def new_snapshot() -> Snapshot:
    """A buffer that holds the rubbish of an older generation."""
    segment = new_segment(snapshot_fields(""))
    os.close(segment.descriptor)
    for array in segment.arrays.values():
        array[:] = 77
    return snapshot_from(segment.arrays, "")


def service(name: str, vips: list[str], backends: dict[str, int], **more: Any) -> Service:
    listed = [Backend.model_validate({"address": a, "weight": w}) for a, w in backends.items()]
    return Service.model_validate({"name": name, "vips": vips, "backends": listed, **more})


def build(
    *services: Service,
    ids: Ids | None = None,
    down: tuple[int, ...] = (),
    stops: Mapping[int, Stops] = {},
    affinities: Affinities | None = None,
) -> tuple[Snapshot, tuple[Part, ...]]:
    """A snapshot in which every backend but `down` is usable at its configured weight."""
    expanded = (ids or Ids()).expand(Config(services=services))
    states = {number: BackendState(up=number not in down) for number in expanded.part_of}
    for number, stop in stops.items():
        states[number].stops = stop
    snapshot = new_snapshot()
    affinities = affinities or Affinities()
    affinities.follow(expanded.parts)
    fill(snapshot, expanded.parts, states, Past(affinities.successions))
    return snapshot, expanded.parts


def unsigned(flow: Flow) -> Flow:
    """A flow that compiled code handed to Python, where numbers lose their type, as it takes it again."""
    address = Address128(np.uint64(flow.address.high), np.uint64(flow.address.low))
    return Flow(np.uint64(flow.hash), np.uint64(flow.scope), address)
