"""The kinds of change that are made to a host. No I/O.

Each prints as the command that would do the same; two changes with the same command are the same change. How
a kind is made and taken back is in `network/setup.py`.
"""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from loaded_mp.fields import Interface, Network
from loaded_mp.network.host import Host


class _Change(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether it is taken back before others are made.
    undone_first: ClassVar[bool] = False

    why: str

    @property
    def command(self) -> str:
        """The equivalent command of a shell."""
        raise NotImplementedError

    @property
    def thing(self) -> str:
        """What is there once it is made, in a few words."""
        raise NotImplementedError

    @property
    def place(self) -> tuple[object, ...]:
        """Of two changes in one place the later one takes the other's, which need not be taken back."""
        return (self.command,)

    def before(self, host: Host) -> Host:
        """The host as it was without this change."""
        return host


class SetLinkUp(_Change):
    """A network interface that was down."""

    kind: Literal["link"] = "link"
    link: str

    @property
    def command(self) -> str:
        return f"ip link set dev {self.link} up"

    @property
    def thing(self) -> str:
        return f"{self.link} up"

    def before(self, host: Host) -> Host:
        if self.link not in host.links:
            return host
        return replace(host, links={**host.links, self.link: replace(host.links[self.link], up=False)})


class AddAddress(_Change):
    """An address on an interface."""

    #: The kernel deletes an IPv4 address together with the one that came before it in the same network, which
    #: is why those that stay are put again.
    undone_first: ClassVar[bool] = True

    kind: Literal["address"] = "address"
    link: str
    address: Interface
    broadcast: IPv4Address | None = None
    vip: bool = False

    @property
    def deprecated(self) -> bool:
        """Whether the kernel is kept from choosing it as a source (RFC 6724, rule 3): IPv6 VIPs.

        A /128 would otherwise win over the host's own address as the source of masqueraded packets.
        """
        return self.vip and self.address.version == 6

    @property
    def command(self) -> str:
        words = ["ip address add", str(self.address)]
        if self.broadcast:
            words += ["broadcast", str(self.broadcast)]
        words += ["dev", self.link]
        if self.address.version == 6:
            words.append("nodad")
        if self.deprecated:
            words.append("preferred_lft 0")
        return " ".join(words)

    @property
    def thing(self) -> str:
        return f"address {self.address} on {self.link}"

    def before(self, host: Host) -> Host:
        there = (self.link, self.address)
        return replace(host, addresses=tuple(each for each in host.addresses if each != there))


class AddRoute(_Change):
    """A network that is on the link of an interface."""

    kind: Literal["route"] = "route"
    link: str
    network: Network

    @property
    def command(self) -> str:
        return f"ip route add {self.network} dev {self.link}"

    @property
    def thing(self) -> str:
        return f"route {self.network} over {self.link}"

    def before(self, host: Host) -> Host:
        return replace(host, routes=tuple(each for each in host.routes if each != self.network))


class AddLocalRoute(_Change):
    """A network whose addresses are all this host's own, although none is on an interface."""

    kind: Literal["local"] = "local"
    link: str
    network: Network

    @property
    def command(self) -> str:
        return f"ip route add local {self.network} dev {self.link}"

    @property
    def thing(self) -> str:
        return f"local route {self.network} on {self.link}"

    def before(self, host: Host) -> Host:
        return replace(host, local=tuple(each for each in host.local if each != self.network))


class SetSysctl(_Change):
    """A setting below /proc/sys, with what is to be written back."""

    kind: Literal["sysctl"] = "sysctl"
    path: str  #: below /proc/sys, as in net/ipv4/ip_forward
    value: str
    previous: str | None  #: None: the kernel does not know the setting
    needed: bool = True  #: False: if it cannot be written, things work all the same
    #: Settings that the kernel changes along when `previous` is written back, and their values before.
    along: tuple[tuple[str, str], ...] = ()

    @property
    def command(self) -> str:
        return f"sysctl -w {self.thing}"

    @property
    def thing(self) -> str:
        # sysctl(8) writes a dot in a name as a slash.
        return f"{self.path.translate({ord('/'): '.', ord('.'): '/'})}={self.value}"

    def before(self, host: Host) -> Host:
        if self.previous is None:
            return host
        return replace(host, sysctls={**host.sysctls, self.path: self.previous})


class AddChain(_Change):
    """A chain of our own and the jump to it, the first rule of a built-in chain, or the last one."""

    kind: Literal["chain"] = "chain"
    variant: Literal["", "nft", "legacy"] = ""  #: of iptables; empty: what the host has chosen
    family: Literal[4, 6]
    table: str
    hook: str
    match: str = ""  #: of the jump; empty: every packet goes through the chain
    name: str
    rules: tuple[str, ...]
    last: bool = False  #: whether rules of others that are there come before it
    first: bool = False  #: whether it stays before rules of others that come later

    @property
    def tool(self) -> str:
        """The command of this family and variant."""
        tool = "iptables" if self.family == 4 else "ip6tables"
        return f"{tool}-{self.variant}" if self.variant else tool

    @property
    def place(self) -> tuple[object, ...]:
        return self.tool, self.table, self.name

    @property
    def jump(self) -> str:
        """The rule of the built-in chain that leads to this one."""
        return f"{self.match} -j {self.name}".strip()

    def text(self, jump: bool) -> str:
        """Input of iptables-restore --noflush: the chain with exactly these rules, in one transaction.

        `jump`: whether it has to be put. One with a place of its own is put anew, as others may have come.
        """
        rules = [f"-A {self.name} {rule}" for rule in self.rules]
        if (self.first or self.last) and not jump:
            rules.append(f"-D {self.hook} {self.jump}")
            jump = True
        if jump:
            rules.append(f"{f'-A {self.hook}' if self.last else f'-I {self.hook} 1'} {self.jump}")
        return "\n".join([f"*{self.table}", f":{self.name} - [0:0]", *rules, "COMMIT", ""])

    @property
    def command(self) -> str:
        return f"{self.tool}-restore --noflush <<END\n{self.text(jump=True)}END"

    @property
    def thing(self) -> str:
        return f"{self.name} in {self.tool} {self.table}"


Change = Annotated[
    SetLinkUp | AddAddress | AddRoute | AddLocalRoute | SetSysctl | AddChain, Field(discriminator="kind")
]
