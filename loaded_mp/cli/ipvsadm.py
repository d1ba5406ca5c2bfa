"""The status as `ipvsadm -L -n` prints its own, and that with `--stats` and `--rate`.

LVS counts for each virtual service, loaded-mp for each service: what its backends have counted stands under
each of its VIPs and listeners. As in LVS, replies that do not pass this machine count as none.
"""

from collections.abc import Iterator
from ipaddress import ip_network

from loaded_mp.config.model import ClientAffinity
from loaded_mp.fields import Endpoint, Listener
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.status import BackendStatus, ServiceStatus, Status

_COLUMNS = ("new_flows", "to_backend_packets", "to_client_packets", "to_backend_bytes", "to_client_bytes")
_TOTALS = ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes")
_RATES = ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS")

Backends = list[tuple[str, BackendStatus]]  #: with what ipvsadm calls them


def ipvsadm(now: Status) -> Iterator[str]:
    """Its lines: who is there, then totals, then rates."""
    first = f"IP Virtual Server version {now.version} (size={now.flow_table.capacity})"
    yield first
    yield "Prot LocalAddress:Port Scheduler Flags"
    yield "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"
    for service, name, backends in _virtual_services(now):
        yield " ".join((name, service.scheduler, *_flags(service)))
        way = FORWARDINGS[service.forwarding].lvs
        for end, each in backends:
            yield f"  -> {end:<28} {way:<7} {each.effective_weight:<6} {each.flows:<10} 0"
    for rates, titles in ((False, _TOTALS), (True, _RATES)):
        yield first
        yield f"{'Prot LocalAddress:Port':<33}" + "".join(f" {each:>8}" for each in titles)
        yield "  -> RemoteAddress:Port"
        for _, name, backends in _virtual_services(now):
            figures = [_figures(each, rates) for _, each in backends]
            yield _line(name, [sum(each) for each in zip(*figures, strict=True)])
            for (end, _), row in zip(backends, figures, strict=True):
                yield _line(f"  -> {end}", row)


def _virtual_services(now: Status) -> Iterator[tuple[ServiceStatus, str, Backends]]:
    """What LVS would have for each VIP and listener of each service."""
    for service in now.services:
        for vip in service.vips:
            for text in service.listen or ("any",):
                yield service, *_virtual(service, vip, text)


def _virtual(service: ServiceStatus, vip: str, text: str) -> tuple[str, Backends]:
    family = ip_network(vip).version
    listener = None if text == "any" else Listener.model_validate(text)
    protocol = str(listener.number) if listener and listener.number else text.partition("/")[0].upper()
    name = f"FWM  {listener.mark}" if listener and listener.mark else f"{protocol:<4} {_at(vip, listener)}"
    backends = [
        (_at(str(endpoint.ip), listener.at(endpoint.port) if listener else None), each)
        for each in service.backends
        if (endpoint := Endpoint.read(each.address)).version == family
    ]
    return name, backends


def _flags(service: ServiceStatus) -> Iterator[str]:
    affinity = ClientAffinity.model_validate(service.affinity)
    if affinity.kind == "none":
        yield "ops"
    if affinity.kind == "source":
        yield "persistent"
        if affinity.prefix4 < 32:
            yield f"mask {ip_network(f'0.0.0.0/{affinity.prefix4}').netmask}"
        if affinity.prefix6 < 128:
            yield f"mask {affinity.prefix6}"


def _figures(backend: BackendStatus, rates: bool) -> list[int]:
    source: dict[str, float] = {**(backend.rates if rates else backend.counters)}
    return [round(source.get(name, 0)) for name in _COLUMNS]


def _at(address: str, listener: Listener | None) -> str:
    port = str(listener).partition("/")[2] if listener and listener.ports else ""
    return f"[{address}]:{port or 0}" if ":" in address else f"{address}:{port or 0}"


def _line(first: str, figures: list[int]) -> str:
    return f"{first:<33}" + "".join(map(_large, figures or [0] * len(_COLUMNS)))


def _large(number: int) -> str:
    """As ipvsadm's print_largenum."""
    for limit, divisor, unit in (
        (10**8, 1, ""), (10**9, 10**3, "K"), (10**11, 10**6, "M"), (10**14, 10**9, "G")
    ):  # fmt: skip
        if number < limit:
            text = f"{number // divisor}{unit}"
            break
    else:
        text = f"{number // 10**12}T"
    return f" {text:>8}"
