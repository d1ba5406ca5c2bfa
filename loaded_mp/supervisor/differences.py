"""What another configuration would change, in lines for people. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel

from loaded_mp.config.model import Backend, Config, Service, Tunnel
from loaded_mp.fields import Endpoint
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.network.changes import AddChain, Change
from loaded_mp.services import Part, Services
from loaded_mp.status import Forecast
from loaded_mp.supervisor.fates import Fate, fates

#: Of tables that have lines of their own, or are too long for one.
_TABLES = ("services", "network", "backends", "checks")
_MOST_LISTED = 4
_MOST_LINES = 200


def service_differences(before: Services, after: Services, flows: Mapping[int, int]) -> Iterator[str]:
    """Settings, services and backends, and in the last line what becomes of flows.

    `flows` are those in the flow table by backend id.
    """
    yield from _settings("", before.config, after.config)
    yield from _settings("network.", before.config.network, after.config.network)
    names = {part.id: part.service.name for part in before.parts}
    gone = dict(before.by_name)
    fate = fates(before, after)
    summary: Counter[Fate] = Counter()
    for name, now in after.by_name.items():
        was = gone.pop(next((names[part.id] for part in now if part.id in names), ""), ())
        if not was:
            yield f"service {name} joins: {_several(len(now[0].service.backends), 'backend')}"
            continue
        yield from _service(was[0].service, now[0].service)
        for part, number in _backends_of(was):
            if number not in after.part_of:
                count = flows.get(number, 0)
                summary[fate[number]] += count
                said = _flows(count, fate[number])
                yield f"service {name}: backend {_name(part.backends[number])} leaves: {said}"
        yield from _backends(name, was, now)
    for name, parts in gone.items():
        count = sum(flows.get(number, 0) for _, number in _backends_of(parts))
        summary[Fate.END] += count
        yield f"service {name} leaves: {_flows(count, Fate.END)}"
    yield f"flows: {summary[Fate.MOVE]:,} move, {summary[Fate.END]:,} end"


def forecast_lines(forecast: Forecast) -> Iterator[str]:
    """Where flows go that move, and who gets which share of new ones."""
    for each in forecast.services:
        place = f"service {each.service} IPv{each.family}: "
        for move in each.moves:
            to = move.to_backend or "nowhere"
            yield f"{place}{_several(move.flows, 'flow')} from {move.backend} to {to}"
        shares = [
            f"{one.name} {one.share or 0:.1%} -> {one.share_then or 0:.1%}"
            for one in each.spread
            if (one.share or 0) != (one.share_then or 0)
        ]
        if shares and each.stays:
            yield f"{place}new flows, at first: {_first(shares)}"


def rule_differences(before: Sequence[Change], after: Sequence[Change]) -> Iterator[str]:
    """Changes of this machine."""
    there, wanted = {each.command for each in before}, {each.command for each in after}
    was = {each.place: each for each in before if isinstance(each, AddChain)}
    now = {each.place: each for each in after if isinstance(each, AddChain)}
    for place in (*was, *(place for place in now if place not in was)):
        old, new = was.get(place), now.get(place)
        if old and new and old.command == new.command:
            continue
        more = Counter(new.rules if new else ())
        fewer = Counter(old.rules if old else ())
        count = f"{(more - fewer).total():,} come, {(fewer - more).total():,} go"
        chain = new or old
        assert chain
        yield f"rules of {chain.thing}: {count}"
    yield from (f"{each.thing}: goes" for each in before if _alone(each) and each.command not in wanted)
    yield from (f"{each.thing}: comes" for each in after if _alone(each) and each.command not in there)


def bounded(lines: Sequence[str]) -> list[str]:
    """So many of the lines as people read, and how many there are more."""
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"and {more:,} more"] if more > 0 else list(lines)


def settings(keys: Sequence[str], before: Config, after: Config) -> list[str]:
    """Those of the settings that differ."""
    return [line for line in _settings("", before, after) if line.partition(":")[0] in keys]


def _alone(change: Change) -> bool:
    return not isinstance(change, AddChain)


def _settings(place: str, before: BaseModel, after: BaseModel) -> Iterator[str]:
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old == new or name in _TABLES:
            continue
        if isinstance(old, Tunnel) and isinstance(new, Tunnel):
            yield from _settings(f"{place}{name}.", old, new)
        elif isinstance(old, tuple) and isinstance(new, tuple):
            yield f"{place}{name}: {_listed(old, new)}"
        else:
            yield f"{place}{name}: {_said(old)} -> {_said(new)}"


def _listed(old: tuple[object, ...], new: tuple[object, ...]) -> str:
    words = [f"+ {each}" for each in new if each not in old] + [
        f"- {each}" for each in old if each not in new
    ]
    return _first(words) or "in another order"


def _first(words: Sequence[str]) -> str:
    more = len(words) - _MOST_LISTED
    return ", ".join([*words[:_MOST_LISTED], *([f"{more:,} more"] if more > 0 else [])])


def _said(value: object) -> str:
    """As a TOML file says it."""
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else "default" if value is None else str(value)


def _service(before: Service, after: Service) -> Iterator[str]:
    place = f"service {after.name}: "
    yield from _settings(place, before, after)
    old_way, new_way = FORWARDINGS[before.forwarding], FORWARDINGS[after.forwarding]
    if old_way.ports_stay != new_way.ports_stay:
        known = "the VIP" if new_way.ports_stay else "their own address"
        yield f"{place}connections are reset, as backends know them by {known} then"
    if before.checks != after.checks:
        old, new = (_several(len(each.checks), "check") for each in (before, after))
        yield f"{place}{old} -> {new}" if old != new else f"{place}checks differ"


def _backends(name: str, before: Sequence[Part], after: Sequence[Part]) -> Iterator[str]:
    """Those that stay or come."""
    was, now = _endpoints(before), _endpoints(after)
    for endpoint, backend in now.items():
        place = f"service {name}: backend {_name(backend)}"
        if endpoint not in was:
            yield f"{place} joins, weight {backend.weight}"
        elif was[endpoint] != backend:
            yield from _settings(f"{place}: ", was[endpoint], backend)


def _endpoints(parts: Sequence[Part]) -> dict[Endpoint, Backend]:
    return {each.address: each for part in parts for each in part.backends.values()}


def _backends_of(parts: Iterable[Part]) -> Iterator[tuple[Part, int]]:
    return ((part, number) for part in parts for number in part.backends)


def _flows(count: int, fate: Fate) -> str:
    return f"1 flow {fate}s" if count == 1 else f"{count:,} flows {fate}"


def _name(backend: Backend) -> str:
    return f"{backend.name} ({backend.address})" if backend.name else str(backend.address)


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
