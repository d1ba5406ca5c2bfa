"""Snapshots for tests, built from services as a configuration has them."""

from typing import Any

import numpy as np

from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.memory.segment import new_segment
from loaded_mp.memory.snapshot import MAX_BACKENDS, Snapshot, snapshot_fields, snapshot_from
from loaded_mp.supervisor.snapshots import Ids, Part, fill


def new_snapshot() -> Snapshot:
    """A buffer that holds the rubbish of an older generation."""
    arrays = new_segment(snapshot_fields(""))
    for array in arrays.values():
        array[:] = 77
    return snapshot_from(arrays, "")


def service(name: str, vips: list[str], backends: dict[str, int], **more: Any) -> Service:
    listed = [Backend.model_validate({"address": a, "weight": w}) for a, w in backends.items()]
    return Service.model_validate({"name": name, "vips": vips, "backends": listed, **more})


def build(
    *services: Service, ids: Ids | None = None, down: tuple[int, ...] = ()
) -> tuple[Snapshot, tuple[Part, ...]]:
    """A snapshot in which every backend but `down` is usable at its configured weight."""
    parts = (ids or Ids()).expand(Config(services=services))
    usable = np.zeros(MAX_BACKENDS, np.bool_)
    weights = np.zeros(MAX_BACKENDS, np.int64)
    for part in parts:
        for number, backend in part.backends.items():
            usable[number] = number not in down
            weights[number] = backend.weight
    snapshot = new_snapshot()
    fill(snapshot, parts, usable, weights)
    return snapshot, parts
