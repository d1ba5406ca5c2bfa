"""What a way of forwarding is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from loaded_mp.fields import Address, Endpoint, Listener, Network, Ports
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.memory.marks import BACKEND, WHOLE_MASK, matched
from loaded_mp.memory.snapshot import Answer
from loaded_mp.network.rules import errors, limits, words

if TYPE_CHECKING:
    from loaded_mp.network.conntrack import Connection

Family = Literal[4, 6]

#: Backends whose rules share a chain: with 1,000, a packet passes as many jumps as backends in its chain.
_TOGETHER = 32

#: What was counted for a backend.
Counted = Mapping[BackendCounter, int]


@dataclass(frozen=True)
class Side:
    """What the rules of one family speak of, for the services that are forwarded in one way."""

    family: Family
    vips: Mapping[Address | Network, tuple[Listener, ...]]  #: what is answered on each; empty: everything
    shared: bool  #: whether other services on these VIPs are forwarded in another way
    backends: Mapping[int, Endpoint]  #: by backend id
    listens: Mapping[
        int, tuple[Listener, ...]
    ]  #: what clients ask each of them for, by backend id; empty: everything
    networks: tuple[Network, ...]  #: of all backends
    sources: tuple[Network, ...]  #: of tunnels' packets
    name_servers: tuple[Address, ...]
    own_addresses: tuple[Address, ...]  #: of this host, within `networks`
    queue: str  #: the queue target
    fast_path: tuple[str, ...]  #: interfaces where the kernel may repeat what workers have decided
    clients_interface: str | None  #: on which only clients are, if there is such a one
    narrow_mtu: int | None  #: of the way to the backends, where it is smaller than that to the clients
    long_packets: bool  #: whether packets may be longer than a queue's message can be


@dataclass(frozen=True)
class Place:
    """One family of a service, whose connections go on in another way."""

    family: Family
    vips: Mapping[int, Address]  #: by VIP id
    backends: Mapping[int, Endpoint]  #: by backend id
    ports: Ports | None  #: for which backends' own stand

    def behind(self, endpoint: Endpoint) -> tuple[int, int] | None:
        """The id of the backend that answers from there, and the port that its clients ask for."""
        for number, port in self._at.get(endpoint.ip, ()):
            asked = (endpoint.port or 0) - (port - self.ports.first if port and self.ports else 0)
            if self.ports is None or self.ports.first <= asked <= self.ports.last:
                return number, asked
        return None

    @cached_property
    def _at(self) -> dict[Address, list[tuple[int, int | None]]]:
        """Backend ids and their own ports by address."""
        found: dict[Address, list[tuple[int, int | None]]] = {}
        for number, endpoint in self.backends.items():
            found.setdefault(endpoint.ip, []).append((number, endpoint.port))
        return found


class Left(NamedTuple):
    """A connection that goes on in another way."""

    connection: "Connection"
    vip: Endpoint  #: by which it came, with the port that its client asks for


class Chain(NamedTuple):
    """A chain of our own; the fields are those of AddChain."""

    table: str
    hook: str
    name: str
    rules: tuple[str, ...]
    why: str
    match: str = ""
    last: bool = False
    first: bool = False


class Forwarding(ABC):
    """Who writes the addresses, and how."""

    #: Who does, for people.
    who: ClassVar[str]
    #: What ipvsadm calls it.
    lvs: ClassVar[str]
    #: What becomes of a packet, for people: {vip}, {backend} with their ports.
    sends: ClassVar[tuple[str, ...]] = (
        "destination {vip} becomes {backend}",
        "in replies source {backend} becomes {vip}",
    )
    #: What the kernel has to have for it, for people.
    needs: ClassVar[str]
    #: What a worker does with a packet.
    answer: ClassVar[Answer]
    #: What is counted of a backend.
    counters: ClassVar[tuple[BackendCounter, ...]] = tuple(BackendCounter)
    #: Whether a backend answers on the port that the client asked for.
    ports_stay: ClassVar[bool] = False
    #: Whether a backend has to be on a link of this machine.
    on_link: ClassVar[bool] = False
    #: Whether its packets carry others: they have sources of their own, and the kernel must join none.
    carries: ClassVar[bool] = False

    @abstractmethod
    def chains(self, side: Side) -> Iterator[Chain]:
        """The chains that bring packets where they are decided; replies come before requests."""

    def counted(self, families: tuple[Family, ...]) -> dict[int, Counted]:
        """What others than workers counted since their counters began, by backend id. Raises NetworkError."""
        return {}

    @abstractmethod
    def known(self, place: Place) -> list[Left]:
        """The connections that the kernel knows. Raises NetworkError."""

    @abstractmethod
    def leave(self, place: Place) -> None:
        """Let go of them, as another way of forwarding goes on. Raises NetworkError."""

    @abstractmethod
    def take_over(self, place: Place, left: Iterable[Left]) -> None:
        """Go on with the connections that another way of forwarding has left. Raises NetworkError."""

    def forget(self, backend: int) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of the connections that others than workers hold for a backend id. Raises NetworkError."""


class Group(NamedTuple):
    """Backends whose rules share a chain."""

    number: int
    mark: str  #: as the match of a mark takes it; that of each of them fits
    backends: Mapping[int, Endpoint]  #: by backend id


def groups(backends: Mapping[int, Endpoint]) -> Iterator[Group]:
    """Put backends together by their ids.

    A packet passes one chain only, so that what it pays for many backends grows with their square root.
    """
    found: dict[int, dict[int, Endpoint]] = {}
    for backend, endpoint in backends.items():
        found.setdefault(backend // _TOGETHER, {})[backend] = endpoint
    for number, members in found.items():
        mark = matched(BACKEND + number * _TOGETHER, WHOLE_MASK - _TOGETHER + 1)
        yield Group(number, mark, members)


def unmarked(side: Side, with_errors: bool = True) -> Iterator[str]:
    """Queue what may be a reply although conntrack has forgotten its connection, or takes it for invalid.

    What backends begin themselves is none. `with_errors`: ICMP errors may be about packets to backends.
    """
    yield "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    if with_errors:
        yield from (words(error, side.queue) for error in errors(side.family))
    yield "-p tcp --syn -j RETURN"
    yield (
        "-p icmp --icmp-type" if side.family == 4 else "-p icmpv6 --icmpv6-type"
    ) + " echo-request -j RETURN"
    for server in side.name_servers:
        yield from (f"-d {server} -p {protocol} --dport 53 -j RETURN" for protocol in ("udp", "tcp"))
    yield from (f"-s {address} -j RETURN" for address in side.own_addresses)
    for network in side.networks:
        matches = limits(_answered(side, network), side.family, "sport")
        yield from (words(f"-s {network}", match, side.queue) for match in matches)


def _answered(side: Side, network: Network) -> tuple[Listener, ...]:
    """What backends in a network may answer; empty: everything."""
    if not all(side.vips.values()):
        return ()
    asked_for = [listener for each in side.vips.values() for listener in each]
    own = [
        listener.at(endpoint.port)
        for number, endpoint in side.backends.items()
        if endpoint.port is not None and endpoint.ip in network
        for listener in side.listens[number]
    ]
    return tuple(dict.fromkeys((*asked_for, *own)))
