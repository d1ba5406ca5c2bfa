"""What has to be known of this machine before it is changed. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass

from loaded_mp.fields import Interface, Network


@dataclass(frozen=True)
class Link:
    """A network interface."""

    up: bool
    mtu: int  #: bytes
    carrier: bool = True
    carrier_changes: int = 0  #: how often it has come or gone


@dataclass(frozen=True)
class Host:
    """This machine."""

    links: Mapping[str, Link]
    addresses: tuple[tuple[str, Interface], ...]  #: interface and address
    routes: tuple[Network, ...]  #: besides those that addresses bring
    sysctls: Mapping[str, str]  #: path below /proc/sys: value
    gateways: tuple[Network, ...] = ()  #: those that are reached by another router, the default among them
    iptables: str = ""  #: the variant that is forced: nft or legacy
    local: tuple[
        Network, ...
    ] = ()  #: networks that are this machine's own, besides those that addresses bring
