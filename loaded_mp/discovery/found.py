"""Who may join a service, and who has been away for too long. No I/O, no clock."""

import random
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from loaded_mp.config.model import Config, Service
from loaded_mp.fields import Address, Network, addresses_of


def networks(service: Service, config: Config) -> tuple[Network, ...]:
    """Where machines are looked for: in the families in which clients come."""
    assert service.discovery
    families = {vip.version for vip in service.vips}
    wanted = service.discovery.networks or config.network.backend_networks
    return tuple(network for network in wanted if network.version in families)


def belongs(address: Address, service: Service, config: Config) -> bool:
    """Whether a machine at this address may be a member."""
    assert service.discovery
    allow = service.discovery.allow
    return any(address in network for network in networks(service, config)) and (
        not allow or any(address in network for network in allow)
    )


def members(service: Service) -> list[Address]:
    """Who was discovered and is still there."""
    return [backend.address.ip for backend in service.backends if backend.discovered]


def candidates(
    answered: Iterable[Address], service: Service, config: Config, own: Set[Address]
) -> list[Address]:
    """Those that answered, may join and have not done so; none of them is an address of this machine."""
    taken = own | {backend.address.ip for backend in service.backends}
    return [
        each
        for each in answered
        if each not in taken and not is_vip(each, config) and belongs(each, service, config)
    ]


def is_vip(address: Address, config: Config) -> bool:
    """Whether an address is a VIP of some service."""
    return any(address in addresses_of(vip) for each in config.services for vip in each.vips)


def some(of: list[Address], most: int) -> list[Address]:
    """At most so many, whichever: so nobody keeps others out by answering first, round after round."""
    return random.sample(of, max(0, min(most, len(of))))


@dataclass
class Absences:
    """Rounds in a row in which members were not there."""

    rounds: dict[Address, int] = field(default_factory=dict)

    def after(self, members: Iterable[Address], there: Set[Address], fall: int) -> list[Address]:
        """Take note of a round; who has been away in `fall` rounds by now."""
        self.rounds = {each: 0 if each in there else self.rounds.get(each, 0) + 1 for each in members}
        return [each for each, rounds in self.rounds.items() if rounds >= fall]
