"""The lines of a classic script that send packets to the queue: they say what is answered on the VIP.

`iptables -t raw -A PREROUTING -d $VIP4 -p tcp --dport 80 -j QUEUE` means `listen = ["tcp/80"]`. What narrows
in another way is refused: passed over, it would open what the script keeps closed.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Literal

EVERYTHING = ""
_TO_THE_QUEUE = re.compile(r"(-j|--jump)[\s=]*[\"']?(NF)?QUEUE\b")
_COMMAND = re.compile(r"(?:.*/)?(ip6?)tables(?:-legacy|-nft)?")
_PROTOCOLS = {
    "all": EVERYTHING, "0": EVERYTHING, "tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp",
    "icmp": "icmp", "1": "icmp", "icmpv6": "icmp", "ipv6-icmp": "icmp", "58": "icmp",
}  # fmt: skip
_SHORT = {
    "--append": "-A", "--insert": "-I", "--delete": "-D", "--check": "-C", "--table": "-t", "--jump": "-j",
    "--protocol": "-p", "--proto": "-p", "--destination": "-d", "--dst": "-d", "--source": "-s",
    "--src": "-s", "--match": "-m", "--in-interface": "-i", "--destination-port": "--dport",
    "--destination-ports": "--dports",
}  # fmt: skip
#: What is understood, or does not narrow.
_OPTIONS = {"-A", "-I", "-t", "-j", "-m", "-p", "-d", "-i", "--dport", "--dports",
            "--queue-num", "--queue-balance", "--comment"}  # fmt: skip
_FLAGS = {"--queue-bypass", "--queue-cpu-fanout", "-w", "--wait"}
_MATCHES = {"tcp", "udp", "multiport", "comment"}


@dataclass(frozen=True)
class Script:
    """What the rules of a script are understood by."""

    family: Literal[4, 6]
    variables: dict[str, str]
    backends: Sequence[str]

    @property
    def vip(self) -> str:
        return self.variables.get(f"VIP{self.family}", "")


def is_queue_rule(line: str) -> bool:
    """Whether a line of a script sends packets to a queue."""
    return bool(_TO_THE_QUEUE.search(line.partition("#")[0]))


def listeners(line: str, script: Script) -> list[str]:
    """What a queue rule lets clients of the VIP have, as `listen` says it, or EVERYTHING.

    Nothing if it is about replies or the other family, or takes a rule away. Raises ValueError that says what
    was found and expected.
    """
    command, *words = _words(line, script)
    known = _COMMAND.fullmatch(command)
    if not known:
        raise ValueError(f"found {command!r}, expected iptables or ip6tables")
    if (known[1] == "ip6") != (script.family == 6) or _lets_nothing_in(words, script):
        return []
    options = _options(words)
    chain = options.get("-A", options.get("-I"))
    if chain != "PREROUTING":
        raise ValueError(f"found the chain {chain!r}, expected PREROUTING")
    if "-d" in options and not _contains(options["-d"], script.vip):
        raise ValueError(f"found {options['-d']!r}, expected VIP{script.family}")
    interface = script.variables.get("public_NIC")
    if options.get("-i", interface) != interface:
        raise ValueError(f"found {options['-i']!r}, expected public_NIC")
    return _answered(options)


def _words(line: str, script: Script) -> list[str]:
    """The words, options in their short form, variables replaced."""

    def value(name: re.Match[str]) -> str:
        return script.variables.get(name[1] or name[2], name[0])

    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        raise ValueError("found open quotes, expected closed ones") from None
    words = words[words[0] == "sudo" :]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    words = [re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, word) for word in words]
    return [_SHORT.get(word, word) for word in words]


def _lets_nothing_in(words: Sequence[str], script: Script) -> bool:
    after = dict(pairwise(words))
    about_replies = "-d" not in after and any(
        _contains(after.get("-s", ""), each) for each in script.backends
    )
    return (
        bool({"-D", "-C"} & {*words}) or "POSTROUTING" in (after.get("-A"), after.get("-I")) or about_replies
    )


def _contains(network: str, address: str) -> bool:
    try:
        return ip_address(address.partition("/")[0]) in ip_network(network, strict=False)
    except ValueError:
        return False


def _options(words: Sequence[str]) -> dict[str, str]:
    """Each option's value. Raises ValueError for what may narrow."""
    options = {}
    for word in words:
        if any(c in word for c in "$`"):
            raise ValueError(f"found {word!r}, expected a plain value: nothing here is executed")
    rest = iter(words)
    for word in rest:
        # A bare number is a place in the chain, or how long to wait for the lock.
        if word in _FLAGS or word.isdecimal():
            continue
        if word not in _OPTIONS:
            raise ValueError(f"found {word!r}, expected no more than -d, -p and --dport beside the queue")
        options[word] = value = next(rest, "")
        if word == "-m" and value not in _MATCHES:
            raise ValueError(f"found '-m {value}', expected no more than -d, -p and --dport beside the queue")
    return options


def _answered(options: dict[str, str]) -> list[str]:
    protocol = _PROTOCOLS.get(name := options.get("-p", "all").lower())
    ports = options.get("--dport", options.get("--dports"))
    if protocol is None or (ports is not None and protocol not in ("tcp", "udp")):
        raise ValueError(f"found '-p {name}', expected tcp or udp, or without a port icmp")
    if ports is None:
        return [protocol]
    return [f"{protocol}/{port.replace(':', '-')}" for port in ports.split(",")]
