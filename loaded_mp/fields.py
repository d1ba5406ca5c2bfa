"""The values that settings are made of.

Times are in seconds, addresses in any notation that the ipaddress module reads.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a backend answers: `10.0.0.1`, or with a port of its own `10.0.0.1:8080`, `[fd00::1]:8080`."""

    ip: Address
    port: int | None = None  #: 1 to 65535; None: that which the client asked for

    @classmethod
    def read(cls, text: str) -> Self:
        """The endpoint that a text means. Raises ValueError."""
        if not (found := _WITH_PORT.fullmatch(text)):
            return cls(ip_address(text))
        if not 1 <= (port := int(found["port"])) <= LAST_PORT:
            raise ValueError(text)
        return cls(IPv6Address(found["ipv6"]) if found["ipv6"] else IPv4Address(found["ipv4"]), port)

    @property
    def version(self) -> Literal[4, 6]:
        """The family of its address."""
        return self.ip.version

    def __str__(self) -> str:
        if self.port is None:
            return str(self.ip)
        return f"[{self.ip}]:{self.port}" if self.version == 6 else f"{self.ip}:{self.port}"


#: RFC 3986, 3.2.2.
_WITH_PORT = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


def _checked(read: Callable[[str], Any], wanted: str) -> Callable[[Any], Any]:
    """One mistake for a bad address, where pydantic would report one for each family."""

    def checked(value: Any) -> Any:
        if not isinstance(value, str):
            if type(value).__module__ == "ipaddress":
                return value
            raise ValueError(f"expected {wanted}, in quotes")
        if "%" in value:
            raise ValueError(f"expected {wanted}, the same on every interface: without %")
        try:
            return read(value)
        except ValueError:
            raise ValueError(f"expected {wanted}") from None

    return checked


def _reader(read: Callable[[Any], Any], wanted: str) -> BeforeValidator:
    return BeforeValidator(_checked(read, wanted))


def _endpoint(value: Any) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    checked = _checked(Endpoint.read, "an IPv4 or IPv6 address, also as 10.0.0.1:80, [fd00::1]:80")
    found: Endpoint | Address = checked(value)
    return found if isinstance(found, Endpoint) else Endpoint(found)


AddressField = Annotated[Address, _reader(ip_address, "an IPv4 or IPv6 address")]
InterfaceField = Annotated[Interface, _reader(ip_interface, "an address, with or without a prefix length")]
EndpointField = Annotated[Endpoint, PlainValidator(_endpoint), PlainSerializer(str, return_type=str)]


def addresses_of(vip: Interface) -> Network:
    """The addresses that a VIP stands for: one, or the whole network where it has no host bits."""
    alone = vip.ip != vip.network.network_address
    return ip_network(vip.ip) if alone else vip.network


def vip_name(vip: Interface) -> str:
    """A VIP for people, as in `192.0.2.10` or `192.0.2.0/28`."""
    return str(addresses_of(vip) if addresses_of(vip).num_addresses > 1 else vip.ip)


BroadcastField = Annotated[IPv4Address, _reader(IPv4Address, "an IPv4 address")]
NetworkField = Annotated[Network, _reader(ip_network, "a network as in 10.0.0.0/24, without host bits")]

#: What listeners are of: protocols with ports, without, any other one by its number, and whatever has a mark.
Protocol = Literal["tcp", "udp", "sctp", "icmp", "proto", "mark"]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
IdleSeconds = Annotated[int, Field(ge=1, le=604_800)]
LAST_PORT = 65_535
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
MAX_WEIGHT = 65_535
#: As many as a flow table can hold.
OpenFlows = Annotated[int, Field(ge=1, le=1 << 25)]
Weight = Annotated[int, Field(ge=0, le=MAX_WEIGHT)]


def _interface_name(name: str) -> str:
    """Refuse what the kernel refuses (net/core/dev.c, dev_valid_name)."""
    refused = any(c in "/:" or c.isspace() or not c.isprintable() for c in name)
    if refused or not 1 <= len(name.encode()) <= 15 or name in (".", ".."):
        raise ValueError("expected the name of a network interface, 1 to 15 bytes")
    return name


InterfaceName = Annotated[str, AfterValidator(_interface_name)]


def one_of(names: Iterable[str]) -> AfterValidator:
    """Refuse text that is none of `names`."""
    *others, last = map(repr, names)
    wanted = f"{', '.join(others)} or {last}" if others else last

    def checked(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected {wanted}")
        return text

    return AfterValidator(checked)


def _host_and_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if text and not (
        colon and port.isdecimal() and 1 <= int(port) <= LAST_PORT and (bracketed or ":" not in host)
    ):
        raise ValueError("expected HOST:PORT, an IPv6 address in brackets")
    return text


HostAndPort = Annotated[str, AfterValidator(_host_and_port)]


class Settings(BaseModel):
    """Frozen, and rejects keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[field.field_name or ""].annotation is not bool:
            raise ValueError("expected no true or false")
        return value


class Ports(NamedTuple):
    """Ports that stand side by side."""

    first: int
    last: int

    def at(self, first: int | None) -> "Ports":
        """As many, from another one on; None: these."""
        return self if first is None else Ports(first, first + self.last - self.first)


#: Among which none can be told by its place.
_ALL_PORTS = Ports(0, LAST_PORT)


#: IANA numbers of those that have names, IPv4 and IPv6.
_NUMBERS = {"tcp": (6, 6), "udp": (17, 17), "sctp": (132, 132), "icmp": (1, 58)}
_NAMES = {number: name for name, numbers in _NUMBERS.items() for number in numbers}
#: No protocols but IPv6 extension headers, one that says who sent it (RFC 4302), one whose checksum covers
#: addresses (RFC 9568, 5.2.8).
_NOT_BALANCED = (0, 43, 44, 59, 60, 135, 139, 140, 51, 112)


#: See memory/marks.py.
_OUR_MARKS = 0x4C4D_0000, 0x4C4F_FFFF


class Listener(Settings):
    """What a service answers on its VIPs: `tcp/80`, `udp/5000-5010`, `icmp`, `proto/47` or `mark/7`."""

    protocol: Protocol
    number: int = Field(
        default=0, ge=0, le=0xFFFF_FFFF
    )  #: IANA number with "proto", netfilter mark with "mark"
    first_port: int = Field(default=0, ge=0, le=LAST_PORT)
    last_port: int = Field(default=LAST_PORT, ge=0, le=LAST_PORT)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict | Listener):
            return value
        if not isinstance(value, str):
            raise ValueError("expected text as in tcp/80")
        protocol, slash, rest = value.strip().partition("/")
        if protocol in _BY_NUMBER:
            return {"protocol": protocol, "number": _BY_NUMBER[protocol](rest)}
        if protocol not in _NUMBERS or (slash and protocol == "icmp"):
            raise ValueError(
                "expected tcp, udp, sctp, icmp, proto/NUMBER or mark/NUMBER, the first three with /PORT or"
                " /FIRST-LAST"
            )
        if not slash:
            return {"protocol": protocol}
        first, dash, last = rest.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not 1 <= int(first) <= int(last) <= LAST_PORT:
            raise ValueError("expected a port or a range FIRST-LAST within 1-65535")
        return {"protocol": protocol, "first_port": int(first), "last_port": int(last)}

    @model_validator(mode="after")
    def _range_has_ports(self) -> Self:
        if self.first_port > self.last_port:
            raise ValueError("expected a last_port that is not below first_port")
        return self

    @property
    def ports(self) -> Ports | None:
        """Those on which it answers; None: its protocol has none."""
        without = self.protocol == "icmp" or self.protocol in _BY_NUMBER
        return None if without else Ports(self.first_port, self.last_port)

    @property
    def mark(self) -> int:
        """The netfilter mark of the packets that it answers; 0: it goes by protocol and port."""
        return self.number if self.protocol == "mark" else 0

    def iana(self, family: Literal[4, 6]) -> int:
        """The number of its protocol; 0: any."""
        if self.mark:
            return 0
        return self.number or _NUMBERS[self.protocol][0 if family == 4 else 1]

    def at(self, first_port: int | None) -> Self:
        """As it looks where its first port is this one; None: as it is."""
        if not self.ports:
            return self
        ports = self.ports.at(first_port)
        return self.model_copy(update={"first_port": ports.first, "last_port": ports.last})

    def __str__(self) -> str:
        if self.protocol in _BY_NUMBER:
            return f"{self.protocol}/{self.number}"
        if self.ports == _ALL_PORTS or not self.ports:
            return self.protocol
        if self.first_port == self.last_port:
            return f"{self.protocol}/{self.first_port}"
        return f"{self.protocol}/{self.first_port}-{self.last_port}"


def protocol_name(number: int) -> str:
    """How `listen` calls the protocol with an IANA number."""
    return _NAMES.get(number, f"proto/{number}")


def _protocol_number(text: str) -> int:
    """A number that a service may answer. Raises ValueError."""
    number = int(text) if text.isdecimal() and len(text) <= 3 else 256
    if number > 255:
        raise ValueError("expected proto/NUMBER, the protocol's number from 1 to 255")
    if number in _NAMES:
        raise ValueError(f"expected {_NAMES[number]}, as protocol {number} is called here")
    if number in _NOT_BALANCED:
        raise ValueError("expected another protocol: this one does not bear other addresses")
    return number


def _mark(text: str) -> int:
    """A mark that an operator's rules may set. Raises ValueError."""
    try:
        number = int(text, 0)
    except ValueError:
        number = 0
    if not 0 < number <= 0xFFFF_FFFF:
        raise ValueError("expected mark/NUMBER, a netfilter mark other than 0, as in mark/7 or mark/0x10")
    if _OUR_MARKS[0] <= number <= _OUR_MARKS[1]:
        raise ValueError("expected a mark below 0x4c4d0000 or above 0x4c4fffff, which are loaded-mp's own")
    return number


_BY_NUMBER: dict[str, Callable[[str], int]] = {"proto": _protocol_number, "mark": _mark}


def port_range(listen: Sequence[Listener]) -> Ports | None:
    """The ports on which all listeners that have ports answer alike; None: there are no such.

    These are the ports that backends' own may stand for.
    """
    # A mark may come with any port; SCTP has a checksum that would have to be computed over the whole packet.
    if any(each.mark or each.protocol == "sctp" for each in listen):
        return None
    ranges = {each.ports for each in listen if each.ports}
    return ranges.pop() if len(ranges) == 1 and _ALL_PORTS not in ranges else None
