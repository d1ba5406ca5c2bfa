"""The words that rules are made of. No I/O."""

from collections.abc import Iterable, Iterator
from typing import Literal

from loaded_mp.fields import Address, Listener, Network
from loaded_mp.memory.marks import OURS, OURS_MASK, matched

Family = Literal[4, 6]

#: The longest IP packet that fits with its attribute header into the 16-bit length of NFQA_PAYLOAD,
#: down to a multiple of 4.
LONGEST_PACKET = 65_528

#: What never comes near a queue. Neighbour discovery: RFC 4861, 133-137. MLD: RFC 2710 and RFC 3810.
_REDIRECT = 137
_LINK_TYPES = (130, 131, 132, 133, 134, 135, 136, _REDIRECT, 143)

#: Errors: RFC 792 and RFC 4443.
_ERROR_TYPES = {4: ("destination-unreachable", "time-exceeded", "parameter-problem"), 6: ("1", "2", "3", "4")}

#: RFC 4291, 2.7.
_MULTICAST = "ff00::/8"

#: IP header and TCP header without options.
HEADERS = {4: 20 + 20, 6: 40 + 20}

#: IPv6 has no setting as send_redirects is for IPv4. All redirects are this host's: they are not forwarded.
NO_REDIRECTS = f"-p icmpv6 --icmpv6-type {_REDIRECT} -j DROP"


def queue_target(queues: range) -> str:
    """NFQUEUE to one queue, or spread over several."""
    if len(queues) == 1:
        return f"-j NFQUEUE --queue-num {queues.start}"
    return f"-j NFQUEUE --queue-balance {queues.start}:{queues.stop - 1}"


def masquerade(networks: tuple[Network, ...]) -> Iterator[str]:
    """What backends start themselves leaves under this host's address.

    Replies never come to nat POSTROUTING: conntrack asks nat only about the first packet of a connection.
    What goes to all on a link keeps its source: MASQUERADE would make that a link-local one.
    """
    yield from (f"-d {network} -j RETURN" for network in networks)
    if any(network.version == 6 for network in networks):
        yield f"-d {_MULTICAST} -j RETURN"
    yield from (f"-s {network} -j MASQUERADE" for network in networks)


def hairpin(networks: Iterable[Network], vips: Iterable[Address | Network]) -> Iterator[str]:
    """A client that its backend would answer directly is given this host's address.

    It is in one of `networks`, where backends are this host's neighbours. This host speaks to VIPs from them.
    """
    mark = matched(OURS, OURS_MASK)
    yield from (f"-s {source} -m mark --mark {mark} -j MASQUERADE" for source in (*networks, *vips))


def rejected(family: Family) -> Iterator[str]:
    """What workers rejected is answered as by a machine on which nobody listens."""
    unreachable = "icmp-port-unreachable" if family == 4 else "icmp6-port-unreachable"
    yield "-p tcp -j REJECT --reject-with tcp-reset"
    yield f"-j REJECT --reject-with {unreachable}"


def link_messages(family: Family, redirects: Literal["RETURN", "DROP"] = "RETURN") -> Iterator[str]:
    """Let IPv6's messages of the link pass; IPv4's are no IP packets."""
    if family == 6:
        for number in _LINK_TYPES:
            yield f"-p icmpv6 --icmpv6-type {number} -j {redirects if number == _REDIRECT else 'RETURN'}"


def errors(family: Family) -> list[str]:
    """Matches of ICMP errors."""
    if family == 4:
        return [f"-p icmp --icmp-type {name}" for name in _ERROR_TYPES[4]]
    return [f"-p icmpv6 --icmpv6-type {number}" for number in _ERROR_TYPES[6]]


def ttl(compared: str, family: Family) -> str:
    """A match of what is left of hops, as in "eq 0"; IPv6 calls that the hop limit."""
    return f"-m ttl --ttl-{compared}" if family == 4 else f"-m hl --hl-{compared}"


def limits(listeners: tuple[Listener, ...], family: Family, ports: Literal["sport", "dport"]) -> list[str]:
    """Matches of what listeners answer; one that matches everything if there are none.

    An operator's mark is one of requests: replies to those may be anything.
    """
    matches = [_limit(listener, family, ports) for listener in listeners]
    return matches if matches and all(matches) else [""]


def words(*parts: str) -> str:
    """The parts as one rule; those that are empty are left out."""
    return " ".join(part for part in parts if part)


def _limit(listener: Listener, family: Family, ports: Literal["sport", "dport"]) -> str:
    if listener.mark:
        return f"-m mark --mark {listener.mark:#x}" if ports == "dport" else ""
    if listener.protocol == "icmp":
        return "-p icmp" if family == 4 else "-p icmpv6"
    if not listener.ports:
        return f"-p {listener.iana(family)}"
    if (listener.first_port, listener.last_port) == (0, 65_535):
        return f"-p {listener.protocol}"
    if listener.first_port == listener.last_port:
        return f"-p {listener.protocol} --{ports} {listener.first_port}"
    return f"-p {listener.protocol} --{ports} {listener.first_port}:{listener.last_port}"
