"""Services and their backends for a screen of 80 columns, on which no address is cut."""

from collections.abc import Iterable

from rich.text import Text

from loaded_mp.status import BackendStatus, ServiceStatus, Status, Wanted

_FIRST_WIDTH = 28
#: Of open and new flows, and of packets and bytes in each direction.
_WIDTHS = (6, 8, 9, 10, 9, 10)
#: What has no exact number of so many digits is rounded.
_EXACT = 100_000


def narrowed(now: Status, text: str, without_new: bool) -> Status:
    """The status with those backends alone whose name or address contains `text`, ignoring case, and, if
    `without_new`, that get no new flows. Services without any are left out.
    """
    services = []
    for service in now.services:
        backends = tuple(
            each
            for each in service.backends
            if text.lower() in f"{each.name} {each.address}".lower()
            and not (without_new and each.effective_weight)
        )
        if backends:
            services.append(service.model_copy(update={"backends": backends}))
    return now.model_copy(update={"services": tuple(services)})


def services_text(services: Iterable[ServiceStatus]) -> Text:
    """Of each backend a line of what there was in all, and one of its state and what there is in a second.

    A name and address that are too long for their column have a line of their own.
    """
    text = Text(no_wrap=True, overflow="ignore", end="")
    text.append(_row("", "", "flows", "", "to backend", "", "to client") + "\n", style="bold")
    text.append(_row("backend", "open", "new", "packets", "bytes", "packets", "bytes") + "\n", style="bold")
    for service in services:
        text.append(f"service {service.name}", style="bold")
        text.append(f": {service.scheduler}, {service.forwarding}, affinity {service.affinity}\n")
        if service.scheduler_fault:
            text.append(f"  scheduler fails: {service.scheduler_fault}\n", style="bold red")
        for vip in service.vips:
            text.append(f"  VIP {vip}: {', '.join(service.listen) or 'everything'}\n")
        which = f" ({service.checks_needed} of them)" if len(service.checks) > 1 else ""
        text.append(f"  checked by {', '.join(service.checks) or 'nothing'}{which}\n")
        for each in service.backends:
            text.append_text(_backend(each))
    return text


def named(name: str, address: str) -> str:
    """A backend's name and address, once if they are the same."""
    return name if name == address else f"{name} {address}"


def duration(seconds: float) -> str:
    """The two largest units of it."""
    days, rest = divmod(int(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, whole = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (whole, "s")]
    first = next((place for place, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])


def state(backend: BackendStatus) -> str:
    """Whether it is up or down and since when, and what is wanted of it, if that is not the usual."""
    wanted = "" if backend.wanted is Wanted.READY else str(backend.wanted)
    up = f"{'up' if backend.up else 'down'} {duration(backend.since_s)}"
    return f"{up}, {wanted}" if wanted and not backend.up else wanted or up


def _backend(backend: BackendStatus) -> Text:
    counters, rates = backend.counters, backend.rates
    totals = [f"{backend.flows:,}", _count(counters["new_flows"])]
    seconds = ["", f"{_count(rates['new_flows'])}/s"]
    for direction in ("to_backend", "to_client"):
        packets, octets = f"{direction}_packets", f"{direction}_bytes"
        if packets in counters:
            totals += [_count(counters[packets]), _size(counters[octets])]
            seconds += [f"{_count(rates[packets])}/s", f"{_size(rates[octets])}/s"]
        else:  # they do not pass this machine
            totals += ["-", "-"]
            seconds += ["", ""]
    role = ", backup" if backend.backup else ""
    said = f"  {state(backend)}{role}, weight {backend.effective_weight}/{backend.weight}"
    if backend.most_flows:
        said += f", {'full: ' if backend.full else ''}at most {backend.most_flows:,} flows"
    colour = (
        "bold red"
        if not backend.up
        else "yellow"
        if backend.full or backend.wanted is not Wanted.READY
        else "green"
    )
    text = Text(f"{_row(named(backend.name, backend.address), *totals)}\n{_row(said, *seconds)}\n")
    text.highlight_words([said], colour)
    return text


def _row(first: str, *figures: str) -> str:
    """The first column has a line of its own where it would reach into the figures, as in df(1)."""
    cells = "".join(f"{each:>{width}}" for each, width in zip(figures, _WIDTHS, strict=True))
    line = f"{'':{_FIRST_WIDTH}}{cells}"
    if len(first) >= len(line) - len(line.lstrip()):
        return f"{first}\n{line}"
    return (first + line[len(first) :]).rstrip()


def _count(number: float) -> str:
    if number < _EXACT:
        return f"{number:,.0f}" if number >= 9.95 or number == int(number) else f"{number:.1f}"
    for unit in ("k", "M", "G"):
        number /= 1000
        if number < 999.5:  # not "1e+03k"
            return f"{number:.3g}{unit}"
    return f"{number / 1000:.3g}T"


def _size(octets: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if octets < 999.5:
            return f"{octets:.3g} {unit}"
        octets /= 1000
    return f"{octets:.3g} TB"
