"""What a configuration is. The readers (TOML, classic file, flags) only fill in these models."""

import re
from ipaddress import ip_network
from math import isqrt
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from loaded_mp.checks import CHECKS
from loaded_mp.checks.check import Check, OneOfTypes
from loaded_mp.checks.program import User, Words
from loaded_mp.config.user import default_user
from loaded_mp.fields import (
    AddressField,
    BroadcastField,
    Endpoint,
    EndpointField,
    HostAndPort,
    IdleSeconds,
    Interface,
    InterfaceField,
    InterfaceName,
    Listener,
    Network,
    NetworkField,
    OpenFlows,
    Ports,
    Seconds,
    Settings,
    Weight,
    addresses_of,
    one_of,
    port_range,
)
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.memory.snapshot import MAX_VIPS, MAX_WORKERS, Affinity
from loaded_mp.schedulers import SCHEDULERS
from loaded_mp.schedulers.scheduler import MAX_ROUND

#: What to say of a service that answers everything.
OPEN = "no listen: clients reach every port of its backends by its VIPs"

#: A table alone is the only one of a list.
_ONE_OR_MORE = BeforeValidator(lambda value: (value,) if isinstance(value, dict | Check) else value)


def _prime(value: int) -> int:
    if any(value % divisor == 0 for divisor in range(2, isqrt(value) + 1)):
        raise ValueError(f"found {value}, expected a prime number, such as 4093 or 65537")
    return value


Prime = Annotated[int, Field(ge=2, le=MAX_ROUND), AfterValidator(_prime)]


def _is_scheduler(name: str) -> str:
    if name not in SCHEDULERS and not (name.startswith("/") and name.endswith(".py")):
        raise ValueError(f"expected {', '.join(map(repr, SCHEDULERS))} or the whole path of a Python file")
    return name


#: A scheduler's name, or a Python file of the operator's.
SchedulerName = Annotated[str, AfterValidator(_is_scheduler)]


def _bounded(vip: Interface) -> Interface:
    if (number := addresses_of(vip).num_addresses) > MAX_VIPS:
        raise ValueError(f"a network of {number:,} addresses, expected at most {MAX_VIPS:,}")
    return vip


#: Without a prefix length it is 32 or 128. Without host bits it is a network: each of its addresses is a VIP.
VipField = Annotated[InterfaceField, AfterValidator(_bounded)]

AFFINITIES = tuple(each.name.lower() for each in Affinity)

_AFFINITY = re.compile(r"([a-z]+)(?:/(\d+))?(?:/(\d+))?")


class ClientAffinity(Settings):
    """What makes packets one flow: `source`, `source/24` or `source/24/64` (networks), `connection`.

    With `none` each goes by itself.
    """

    kind: Annotated[str, one_of(AFFINITIES)]
    prefix4: int = Field(default=32, ge=1, le=32)  #: how many bits of an IPv4 address count
    prefix6: int = Field(default=128, ge=1, le=128)  #: of an IPv6 address

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """A number alone is for IPv4, one above 32 for IPv6."""
        if not isinstance(value, str):
            return value
        found = _AFFINITY.fullmatch(value)
        if not found or (found[2] and found[1] != "source"):
            raise ValueError(f"found {value!r}, expected source, source/24, source/24/64, connection or none")
        kind, *prefixes = (each for each in found.groups() if each)
        if len(prefixes) == 1 and int(prefixes[0]) > 32:
            prefixes = ["32", *prefixes]
        return {"kind": kind, **dict(zip(("prefix4", "prefix6"), map(int, prefixes), strict=False))}

    def prefix(self, family: int) -> int:
        """How many bits of a client's address count."""
        return self.prefix4 if family == 4 else self.prefix6

    @property
    def families(self) -> set[int]:
        """Those of which networks count, and not addresses."""
        return {family for family, bits in ((4, 32), (6, 128)) if self.prefix(family) < bits}

    def __str__(self) -> str:
        return self.kind + (f"/{self.prefix4}/{self.prefix6}" if self.families else "")

    @model_serializer
    def _to_text(self) -> str:
        return str(self)


class Backend(Settings):
    """A machine that answers for a service."""

    address: EndpointField  #: with a port where that is another one than clients ask for
    weight: Weight = 1
    name: str = ""  #: for people; the address where it is empty
    check_address: AddressField | None = None  #: who is asked in its place; None: itself
    discovered: bool = False  #: it leaves when it vanishes
    backup: bool = False  #: serves only while no other backend of the service can
    most_flows: OpenFlows | None = None  #: with so many it gets no new ones; None: no limit
    fewest_flows: OpenFlows | None = None  #: until it has fewer than these; None: three quarters of the most

    @model_validator(mode="after")
    def _fewest_is_not_more(self) -> Self:
        if self.fewest_flows and not self.most_flows:
            raise ValueError("fewest_flows: expected most_flows beside it")
        if self.fewest_flows and self.most_flows and self.fewest_flows > self.most_flows:
            raise ValueError(f"fewest_flows: found {self.fewest_flows}, expected most_flows or less")
        return self

    @property
    def limits(self) -> tuple[int, int] | None:
        """With how many open flows it is full, and with fewer than how many it is no more; None: no limit."""
        if not self.most_flows:
            return None
        return self.most_flows, self.fewest_flows or -(-3 * self.most_flows // 4)


class Discovery(Settings):
    """Machines that answer an echo to all and pass the service's checks join it; those that vanish leave."""

    interval_s: Seconds = 10.0  #: from one echo to the next
    networks: tuple[NetworkField, ...] = ()  #: who is in them may join; empty: `network.backend_networks`
    allow: tuple[NetworkField, ...] = ()  #: of those, who may; empty: all
    most: int = Field(default=64, ge=1, le=1_024)  #: machines that are members at a time
    weight: Weight = 1  #: that they get
    fall: int = Field(default=3, ge=1, le=100)  #: rounds in a row without an answer until one leaves

    def __str__(self) -> str:
        """As in "every 10 s in 10.0.0.0/24, at most 64 machines"."""
        where = ", ".join(map(str, self.allow or self.networks)) or "the backends' networks"
        return f"every {self.interval_s:g} s in {where}, at most {self.most} machines of weight {self.weight}"


class OnDown(Settings):
    """What becomes of the flows of a backend that goes down, by protocol.

    "move": to another one with their next packet. "keep": they stay. "reset": both ends of TCP connections
    are told, new ones go elsewhere.
    """

    tcp: Literal["move", "reset", "keep"] = "move"
    udp: Literal["move", "keep"] = "move"
    other: Literal["move", "keep"] = "move"

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        if value == "reset":
            return {"tcp": value}
        return dict.fromkeys(cls.model_fields, value) if isinstance(value, str) else value


class Observe(Settings):
    """Taking a backend for down by what workers see of it; its checks say when it is up again."""

    unanswered: int = Field(default=3, ge=1, le=1_000_000)  #: connections that are begun, and no packet comes
    silent_ms: int = Field(default=150, ge=1, le=60_000)  #: for so long
    refused: int = Field(default=3, ge=1, le=1_000_000)  #: connections, and none is accepted between them
    errors: int = Field(default=3, ge=1, le=1_000_000)  #: ICMP errors, and no packet comes between them
    reset: int = Field(default=3, ge=1, le=1_000_000)  #: connections, and no data comes between these
    most_share: float = Field(default=0.5, ge=0, le=1)  #: of a service's backends that may be down by this


class Tunnel(Settings):
    """How packets are put into others for backends, with forwarding = "tunnel"."""

    kind: Literal["ipip", "gue"] = "ipip"  #: IP in IP, or in UDP (generic UDP encapsulation, direct)
    port: int = Field(default=6080, ge=1, le=65_535)  #: UDP port of the backends, for gue
    #: Their source addresses: a network of each family of which this machine has no address.
    sources: tuple[NetworkField, ...] = (ip_network("192.0.0.0/29"), ip_network("100::/64"))

    @field_validator("sources", mode="after")
    @classmethod
    def _one_of_each_family(cls, sources: tuple[Network, ...]) -> tuple[Network, ...]:
        """Those that are left out are the default ones."""
        families = [each.version for each in sources]
        if len(families) != len(set(families)):
            raise ValueError("sources: found several networks of a family, expected one")
        if long := next((each for each in sources if each.num_addresses > 1 << 64), None):
            raise ValueError(f"sources: found {long}, expected /64 or a smaller network")
        others = [each for each in cls.model_fields["sources"].default if each.version not in families]
        return (*sources, *others)

    @model_validator(mode="after")
    def _port_of_gue(self) -> Self:
        if self.kind == "ipip" and self.port != type(self).model_fields["port"].default:
            raise ValueError(
                f'port: found {self.port}, expected none: IP in IP has no ports, kind = "gue" has'
            )
        return self


class Service(Settings):
    """VIPs, what is answered on them, and the backends that answer."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")
    vips: tuple[VipField, ...] = Field(min_length=1)  #: addresses, and networks of them
    listen: tuple[Listener, ...] = ()  #: empty: every protocol and port
    scheduler: SchedulerName = "wrr"
    scheduler_interval_s: Seconds = 1.0  #: a Python file is asked so often, and when backends have changed
    scheduler_user: User = "nobody"  #: whom it runs as
    table_size: Prime = MAX_ROUND  #: slots of Maglev's table, and the most that a Python file may give
    affinity: ClientAffinity = ClientAffinity(kind="source")
    tcp_fin_idle_s: IdleSeconds = 120  #: of a connection that one end has ended, with affinity = "connection"
    forwarding: Annotated[str, one_of(FORWARDINGS)] = "rewrite"  #: who writes the addresses
    tunnel: Tunnel = Tunnel()
    tcp_idle_s: IdleSeconds = 7_500  #: more than TCP's keepalive of 7,200 (RFC 9293, 3.8.4)
    udp_idle_s: IdleSeconds = 300
    other_idle_s: IdleSeconds = 60
    unconfirmed_s: IdleSeconds = (
        10  #: of a client that sent one packet and got no answer, where workers rewrite
    )
    checks: Annotated[tuple[Annotated[Check, OneOfTypes(CHECKS)], ...], _ONE_OR_MORE] = Field(
        default=(), max_length=16
    )  #: empty: every backend counts as up
    checks_needed: Literal["all", "any"] = "all"  #: which of them a backend has to pass
    #: What a backend counts as until it was checked; None: down if it joins a service that runs, else up.
    initial: Literal["up", "down"] | None = None
    slow_start_s: Annotated[int, Field(ge=0, le=3_600)] = (
        0  #: so long a backend's share rises after it came up
    )
    flaps: Annotated[int, Field(ge=2, le=100)] | None = None  #: so often down, and a backend has to wait
    flaps_within_s: IdleSeconds = 300  #: in which these are counted
    flap_wait_s: IdleSeconds = 60  #: so long it is then down at the least
    panic_share: Annotated[float, Field(ge=0, le=1)] = (
        0.0  #: of backends up; below it checks are not believed
    )
    quorum: int = Field(default=1, ge=1, le=1_000_000)  #: the weights of those that serve, added up
    quorum_up: Words = ()  #: run when it is reached
    quorum_down: Words = ()  #: run when it is no more
    quorum_user: User = "root"  #: whom these run as
    all_zero: bool = False  #: whether no backend may have a weight
    on_down: OnDown = OnDown()
    all_down: Literal["drop", "reject", "spread"] = "drop"  #: what is done while no backend is usable
    observe: Observe | None = None  #: None: only checks say what is down
    discovery: Discovery | None = None
    #: There may be none where they are discovered.
    backends: tuple[Backend, ...] = Field(default=(), validate_default=True)

    @property
    def ports(self) -> Ports | None:
        """Those that a backend's own port stands for; None: there are no such."""
        return port_range(self.listen)

    def asked(self, check: Check, backend: Backend) -> Endpoint:
        """Who is asked by a check about a backend."""
        own, listened = backend.address.port, self.ports.first if self.ports else None
        address = check.address or backend.check_address or backend.address.ip
        return Endpoint(address, check.port_of(own, listened))

    @field_validator("backends", mode="after")
    @classmethod
    def _someone_serves(cls, backends: tuple[Backend, ...], others: ValidationInfo) -> tuple[Backend, ...]:
        if not backends and others.data.get("discovery", ...) is None:
            raise PydanticKnownError("too_short", {"field_type": "", "min_length": 1, "actual_length": 0})
        return backends

    @model_validator(mode="after")
    def _each_packet_by_itself(self) -> Self:
        only_udp = bool(self.listen) and all(each.protocol == "udp" for each in self.listen)
        if self.affinity.kind == "none" and not only_udp:
            raise ValueError(
                'affinity: found "none", expected listen to name udp only: connections would break'
            )
        return self

    @model_validator(mode="after")
    def _networks_are_of_its_family(self) -> Self:
        """A number alone may have been meant for the other family."""
        own, named = {vip.version for vip in self.vips}, self.affinity.families
        if named and not named & own:
            raise ValueError(
                f"affinity: found networks of IPv{min(named)}, expected some of IPv{min(own)}, as its VIPs"
                ' are ("source/24": IPv4, "source/64": IPv6)'
            )
        return self

    @property
    def limits_flows(self) -> bool:
        """Whether some backend may have only so many flows."""
        return any(each.most_flows for each in self.backends)

    @model_validator(mode="after")
    def _limits_have_means(self) -> Self:
        if self.limits_flows and self.affinity.kind == "none":
            raise ValueError('most_flows: expected another affinity than "none": it has no flows to count')
        return self

    @model_validator(mode="after")
    def _tunnel_is_used(self) -> Self:
        if self.tunnel != Tunnel() and self.forwarding != "tunnel":
            raise ValueError(f'tunnel: found forwarding = "{self.forwarding}", expected "tunnel"')
        return self

    @model_validator(mode="after")
    def _observe_has_means(self) -> Self:
        if self.observe and not self.checks:
            raise ValueError("observe: expected a check too, or nothing would say that a backend is up again")
        if self.observe and self.forwarding != "rewrite":
            raise ValueError('observe: expected forwarding = "rewrite": else workers see no answers')
        return self


class NetworkSetup(Settings):
    """What is set up on the host. What is left out is left alone."""

    public_interface: InterfaceName | None = None  #: VIPs and `public_addresses` are put here
    private_interface: InterfaceName | None = None  #: `private_addresses` and routes to the backends
    public_addresses: tuple[InterfaceField, ...] = ()
    private_addresses: tuple[InterfaceField, ...] = ()  #: the gateways of the backends
    backend_networks: tuple[NetworkField, ...] = ()  #: empty: the addresses of the backends one by one
    name_servers: tuple[AddressField, ...] = ()  #: queries of backends to these are never queued
    broadcast: BroadcastField | None = None  #: of the backends' network, where broadcast pings are answered
    masquerade: bool = True  #: what backends start themselves leaves under the balancer's address


class Config(Settings):
    """All of it."""

    services: tuple[Service, ...] = Field(min_length=1)
    network: NetworkSetup = NetworkSetup()
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None  #: None: one for each core
    first_queue: int = Field(default=0, ge=0, le=65_535)
    first_core: Annotated[int, Field(ge=0, le=4_095)] | None = None  #: None: not pinned
    last_core: Annotated[int, Field(ge=0, le=4_095)] | None = None
    #: Packets that wait in one queue. A worker decides about 245,000 small ones a second: that is 17 ms.
    queue_length: int = Field(default=4_096, ge=1, le=1_048_576)
    #: Whether the kernel repeats what workers have decided, where it can; off: each packet is queued.
    #: redirect: it sends packets from one interface to the other, past FORWARD rules and conntrack.
    fast_path: Literal["auto", "redirect", "off"] = "auto"
    flows: int = Field(default=1_048_576, ge=1_024, le=33_554_432)  #: sources that the flow table holds
    #: So long a stop tells both ends of TCP connections that they are over.
    goodbye_s: Annotated[float, Field(ge=0, le=60)] = 2.0
    user: str = Field(default_factory=default_user, min_length=1)
    control_group: Annotated[str, Field(min_length=1)] | None = (
        None  #: may use the control socket, as root may
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_listen: HostAndPort = "127.0.0.1:9128"  #: of /metrics; empty: none

    @model_validator(mode="after")
    def _redirects_between_two(self) -> Self:
        named = {self.network.public_interface, self.network.private_interface} - {None}
        if self.fast_path == "redirect" and len(named) < 2:
            raise ValueError(
                'fast_path: found "redirect", expected network.public_interface and'
                " network.private_interface to name two interfaces: packets go from one to the other"
            )
        return self
