"""Whether the changes that were made to this machine still hold."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from loaded_mp.network import iptables, links, sysctls
from loaded_mp.network.changes import (
    AddAddress,
    AddChain,
    AddLocalRoute,
    AddRoute,
    Change,
    SetLinkUp,
    SetSysctl,
)
from loaded_mp.network.host import Link


@dataclass(frozen=True)
class Look:
    """What one look at the machine has found."""

    lost: Mapping[Change, str]  #: what no longer holds, in the order in which it is made, and what is missing
    away: frozenset[str]  #: interfaces that are not there, or down: what lies on them cannot be put back
    #: VIPs that are there, on an interface with a carrier, and how often that has come or gone.
    announceable: frozenset[tuple[AddAddress, int]]


class Presence:
    """Remembers how iptables-save writes our rules, which is not how they are written in a plan."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[str, ...]] = {}  #: by the chain's command

    def look(self, wanted: Sequence[Change]) -> Look:
        """Which of the changes still hold. Takes tens of milliseconds. Raises NetworkError."""
        found, addresses, routes, local, _ = links.read_links(
            with_routes=any(isinstance(each, AddRoute | AddLocalRoute) for each in wanted)
        )
        away = _away(wanted, found)
        lost: dict[Change, str] = {}
        tables = {
            (each.tool, each.table): iptables.rules(each.tool, each.table)
            for each in {each.place[:2]: each for each in wanted if isinstance(each, AddChain)}.values()
        }
        for each in wanted:
            match each:
                case AddChain():
                    if missing := self._missing(each, tables[each.tool, each.table]):
                        lost[each] = missing
                    continue
                case SetSysctl():
                    holds = sysctls.holds(each)
                case _ if each.link in away:
                    continue
                case SetLinkUp():
                    holds = found[each.link].up
                case AddAddress():
                    holds = (each.link, each.address) in addresses
                case AddRoute():
                    holds = each.network in routes
                case AddLocalRoute():
                    holds = each.network in local
                case _:
                    assert_never(each)
            if not holds:
                lost[each] = each.thing
        chains = {each.command for each in wanted if isinstance(each, AddChain)}
        self._written = {command: lines for command, lines in self._written.items() if command in chains}
        announceable = frozenset(
            (each, found[each.link].carrier_changes)
            for each in wanted
            if isinstance(each, AddAddress)
            and each.vip
            and each.link not in away
            and each not in lost
            and found[each.link].carrier
        )
        return Look(lost, away, announceable)

    def _missing(self, chain: AddChain, lines: Sequence[str]) -> str:
        """What of a chain is missing; an empty string if it is as we made it.

        Others may put rules of theirs in front of the jump, unless it has to be the first one.
        """
        rules = tuple(line for line in lines if line.startswith(f"-A {chain.name} "))
        if len(rules) != len(chain.rules) or self._written.setdefault(chain.command, rules) != rules:
            return f"rules of {chain.thing}"
        hook = [line for line in lines if line.startswith(f"-A {chain.hook} ")]
        if not any(line.endswith(f" -j {chain.name}") for line in hook):
            return f"jump to {chain.thing}"
        before = itertools.takewhile(lambda line: not line.endswith(f" -j {chain.name}"), hook)
        if chain.first and any(" -j LOADED-" not in line for line in before):
            return f"place of the jump to {chain.thing}"
        return ""


def _away(wanted: Sequence[Change], found: Mapping[str, Link]) -> frozenset[str]:
    raised = {each.link for each in wanted if isinstance(each, SetLinkUp)}
    needed = raised | {
        each.link for each in wanted if isinstance(each, AddAddress | AddRoute | AddLocalRoute)
    }
    return frozenset(name for name in needed if name not in found or not (found[name].up or name in raised))
