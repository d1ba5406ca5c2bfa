"""The status as `ipvsadm -L -n --stats` and `--rate` print theirs, for eyes and scripts that know these.

LVS counts for each virtual service, loaded-mp for each service: what its backends have counted stands under
each of its VIPs and listeners. As in LVS, replies that do not pass this machine count as none.
"""

from collections.abc import Iterator
from ipaddress import ip_network

from loaded_mp.fields import Endpoint, Listener
from loaded_mp.status import BackendStatus, ServiceStatus, Status

_COLUMNS = ("new_flows", "to_backend_packets", "to_client_packets", "to_backend_bytes", "to_client_bytes")


def ipvsadm(now: Status) -> Iterator[str]:
    """Its lines: totals, then rates."""
    for rates in (False, True):
        yield f"IP Virtual Server version {now.version} (size={now.flow_table.capacity})"
        titles = ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS") if rates else (
            "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes")  # fmt: skip
        yield f"{'Prot LocalAddress:Port':<33}" + "".join(f" {each:>8}" for each in titles)
        yield "  -> RemoteAddress:Port"
        for service in now.services:
            for vip in service.vips:
                yield from _virtual(service, vip, rates)


def _virtual(service: ServiceStatus, vip: str, rates: bool) -> Iterator[str]:
    family = ip_network(vip).version
    backends = [
        (endpoint, each)
        for each in service.backends
        if (endpoint := Endpoint.read(each.address)).version == family
    ]
    figures = [_figures(each, rates) for _, each in backends]
    for text in service.listen or ("any",):
        listener = None if text == "any" else Listener.model_validate(text)
        total = [sum(each) for each in zip(*figures, strict=True)]
        name = str(listener.number) if listener and listener.number else text.partition("/")[0].upper()
        first = f"FWM  {listener.mark}" if listener and listener.mark else f"{name:<4} {_at(vip, listener)}"
        yield _line(first, total)
        for (endpoint, _), row in zip(backends, figures, strict=True):
            own = listener.at(endpoint.port) if listener else None
            yield _line(f"  -> {_at(str(endpoint.ip), own)}", row)


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
