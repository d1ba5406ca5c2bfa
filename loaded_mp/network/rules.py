"""The rules that bring packets to the queues. No I/O.

For services that workers rewrite, requests are queued before conntrack and routing (raw PREROUTING),
replies after them (mangle POSTROUTING). For those that the kernel forwards, only the first packet of a
connection is queued (nat PREROUTING, where no other comes); it passes there once more with the mark of a
backend, by which the connection is translated as long as it lives. The mark stays with the connection
(connmark), which is how its packets are counted and how the connections of a backend are found.

Port matches rely on whole packets: the conntrack match at the end of LOADED-POSTROUTING makes the kernel
reassemble fragments in front of raw PREROUTING (nf_defrag_ipv4, nf_defrag_ipv6).
"""

from dataclasses import dataclass
from typing import Literal

from loaded_mp.config.model import Address, Config, Listener, Network

Family = Literal[4, 6]
Forwarding = Literal["rewrite", "conntrack"]

#: The part of a mark that says that it is ours.
_MARK_MASK = 0xFFFF_0000
_WHOLE_MARK = 0xFFFF_FFFF

#: Where forwarded packets are counted. Each table costs each packet at each of its hooks: mangle has five,
#: this one three, of which a forwarded packet passes one; and it comes last, so that what a firewall does
#: in the others makes no difference to what is counted.
ACCOUNTING_TABLE = "security"

#: Backends whose counters share a chain: with 1,000, a packet passes as many jumps as backends in its chain.
_COUNTED_TOGETHER = 32

#: The longest IP packet that fits with its attribute header into the 16-bit length of NFQA_PAYLOAD,
#: down to a multiple of 4.
LONGEST_PACKET = 65_528

#: What never comes near a queue. Neighbour discovery: RFC 4861, 133-137. MLD: RFC 2710 and RFC 3810.
_REDIRECT = 137
_LINK_TYPES = (130, 131, 132, 133, 134, 135, 136, _REDIRECT, 143)

#: Errors: RFC 792 and RFC 4443.
_ERROR_TYPES = {4: ("destination-unreachable", "time-exceeded", "parameter-problem"), 6: ("1", "2", "3", "4")}

#: IP header and TCP header without options.
_HEADERS = {4: 20 + 20, 6: 40 + 20}


@dataclass(frozen=True)
class Side:
    """What the rules of one family speak of."""

    family: Family
    listeners: dict[Address, tuple[Listener, ...]]  #: for each VIP that workers rewrite; empty: everything
    translated: dict[Address, tuple[Listener, ...]]  #: the same for VIPs that the kernel translates
    marks: tuple[tuple[Address, int], ...]  #: backends that the kernel translates to, and their marks
    networks: tuple[Network, ...]  #: of the backends
    name_servers: tuple[Address, ...]
    own_addresses: tuple[Address, ...]  #: of this host, within `networks`
    queue: str  #: the queue target
    narrow_mtu: int | None = None  #: of the way to the backends, where it is smaller than that to the clients


def queue_target(first_queue: int, workers: int) -> str:
    """NFQUEUE to one queue, or spread over one for each worker."""
    if workers == 1:
        return f"-j NFQUEUE --queue-num {first_queue}"
    return f"-j NFQUEUE --queue-balance {first_queue}:{first_queue + workers - 1}"


def listeners_of(
    config: Config, family: Family, forwarding: Forwarding
) -> dict[Address, tuple[Listener, ...]]:
    """What is answered on each VIP of a family, over all services forwarded so; empty: everything."""
    found: dict[Address, tuple[Listener, ...]] = {}
    everything = set()
    for service in config.services:
        for vip in service.vips:
            if vip.version == family and service.forwarding == forwarding:
                found[vip.ip] = tuple(dict.fromkeys((*found.get(vip.ip, ()), *service.listen)))
                if not service.listen:
                    everything.add(vip.ip)
    return {vip: () if vip in everything else listeners for vip, listeners in found.items()}


def prerouting(side: Side) -> list[str]:
    """LOADED-PREROUTING in raw: what clients send to VIPs."""
    if not side.listeners:
        return []
    rules = _link_messages() if side.family == 6 else []
    for server in side.name_servers:
        rules += [f"-s {server} -p {protocol} --sport 53 -j RETURN" for protocol in ("udp", "tcp")]
    for vip in side.listeners:
        rules += _untracked(side, vip)
    for vip, listeners in side.listeners.items():
        limits = [_limit(listener, side.family, "dport") for listener in listeners] or [""]
        if listeners and all(listener.protocol != "icmp" for listener in listeners):
            limits += _errors(side.family)
        rules += [_words(f"-d {vip}", limit, side.queue) for limit in limits]
    return rules


def _untracked(side: Side, vip: Address) -> list[str]:
    """Requests that this host answers with an error instead of forwarding them.

    If such a request begins a connection, its error belongs to a connection that is not confirmed, and the
    kernel refuses to queue that (net/netfilter/nfnetlink_queue.c, nf_ct_drop_unconfirmed): so conntrack
    does not get to see them. TCP begins with packets that no link is too narrow for.
    """
    match = "-m ttl --ttl-lt 2" if side.family == 4 else "-m hl --hl-lt 2"
    rules = [f"-d {vip} {match} -j CT --notrack"]
    if side.narrow_mtu:
        rules.append(f"-d {vip} ! -p tcp -m length --length {side.narrow_mtu + 1}:65535 -j CT --notrack")
    return rules


def translation(side: Side) -> list[str]:
    """LOADED-DNAT in nat PREROUTING: first packets to the queue, then by their mark to a backend.

    The mark goes to the connection. Only first packets come here, so the others pay nothing for it.
    """
    ours = {mark & _MARK_MASK for _, mark in side.marks}
    rules = [f"-m mark --mark {part:#x}/{_MARK_MASK:#x} -j CONNMARK --save-mark" for part in ours]
    for address, mark in side.marks:
        rules.append(f"-m mark --mark {mark:#x} -j DNAT --to-destination {address}")
    for vip, listeners in side.translated.items():
        limits = [_limit(listener, side.family, "dport") for listener in listeners] or [""]
        rules += [_words(f"-d {vip}", limit, side.queue) for limit in limits]
    return rules


def accounting(side: Side) -> dict[str, tuple[str, list[str]]]:
    """LOADED-FORWARD-* in security FORWARD: for each chain the match of the jump to it, and its rules.

    A counter for each backend and direction, which `network/conntrack.py` reads. A packet passes one chain
    only, so that what it pays for many backends grows with their square root.
    """
    chains: dict[str, tuple[str, list[str]]] = {}
    for address, mark in side.marks:
        first = mark - mark % _COUNTED_TOGETHER
        match = f"-m connmark --mark {first:#x}/{_WHOLE_MARK - _COUNTED_TOGETHER + 1:#x}"
        name = f"LOADED-FORWARD-{(mark & ~_MARK_MASK) // _COUNTED_TOGETHER}"
        rules = chains.setdefault(name, (match, []))[1]
        rules += [f"{way} {address} -m connmark --mark {mark:#x} -j RETURN" for way in ("-d", "-s")]
    return chains


def postrouting(side: Side, clamp: bool) -> list[str]:
    """LOADED-POSTROUTING in mangle: what backends reply, and ICMP errors about packets to them.

    `clamp`: packets may be longer than a queue's message can be, so TCP's segments are kept shorter.
    Redirects are dropped: they would show a backend a way around the balancer, and IPv6 has no
    setting as send_redirects is for IPv4. They are never forwarded, so all are this host's own.
    Where the kernel translates everything nothing else is needed, and each rule would cost each packet.
    """
    if not side.listeners:
        return [_link_message(_REDIRECT, "DROP")] if side.family == 6 else []
    rules = _link_messages(redirects="DROP") if side.family == 6 else []
    if side.translated:
        rules.append("-m conntrack --ctstate DNAT -j RETURN")
    rules += [_words(error, side.queue) for error in _errors(side.family)]
    for server in side.name_servers:
        rules += [f"-d {server} -p {protocol} --dport 53 -j RETURN" for protocol in ("udp", "tcp")]
    rules += [f"-s {address} -j RETURN" for address in side.own_addresses]
    if clamp:
        mss = LONGEST_PACKET - _HEADERS[side.family]
        match = f"-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {mss}"
        rules += [f"{way} {network} {match}" for network in side.networks for way in ("-s", "-d")]
    limits = [""]
    if all(side.listeners.values()):
        listeners = dict.fromkeys(listener for each in side.listeners.values() for listener in each)
        limits = [_limit(listener, side.family, "sport") for listener in listeners]
    rules += [_words(f"-s {network}", limit, side.queue) for network in side.networks for limit in limits]
    return [*rules, "-m conntrack --ctstate INVALID"]


def nat(side: Side) -> list[str]:
    """LOADED-NAT in nat POSTROUTING: what backends start themselves leaves under this host's address.

    Replies never come here: conntrack asks nat only about the first packet of a connection.
    """
    rules = [f"-d {network} -j RETURN" for network in side.networks]
    return rules + [f"-s {network} -j MASQUERADE" for network in side.networks]


def _link_messages(redirects: Literal["RETURN", "DROP"] = "RETURN") -> list[str]:
    return [_link_message(number, redirects if number == _REDIRECT else "RETURN") for number in _LINK_TYPES]


def _link_message(number: int, target: Literal["RETURN", "DROP"]) -> str:
    return f"-p icmpv6 --icmpv6-type {number} -j {target}"


def _errors(family: Family) -> list[str]:
    if family == 4:
        return [f"-p icmp --icmp-type {name}" for name in _ERROR_TYPES[4]]
    return [f"-p icmpv6 --icmpv6-type {number}" for number in _ERROR_TYPES[6]]


def _limit(listener: Listener, family: Family, ports: Literal["sport", "dport"]) -> str:
    if listener.protocol == "icmp":
        return "-p icmp" if family == 4 else "-p icmpv6"
    if (listener.first_port, listener.last_port) == (0, 65_535):
        return f"-p {listener.protocol}"
    if listener.first_port == listener.last_port:
        return f"-p {listener.protocol} --{ports} {listener.first_port}"
    return f"-p {listener.protocol} --{ports} {listener.first_port}:{listener.last_port}"


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)
