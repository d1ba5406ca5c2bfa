"""The kinds of change that are made to a host. No I/O.

Each prints as the command that would do the same; two changes with the same command are the same change.
"""

from ipaddress import IPv4Address
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from loaded_mp.config.model import Interface, Network


class _Change(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    why: str


class SetLinkUp(_Change):
    """A network interface that was down."""

    kind: Literal["link"] = "link"
    link: str

    @property
    def command(self) -> str:
        """The equivalent command of iproute2."""
        return f"ip link set dev {self.link} up"


class AddAddress(_Change):
    """An address on an interface."""

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
        """The equivalent command of iproute2."""
        words = ["ip address add", str(self.address)]
        if self.broadcast:
            words += ["broadcast", str(self.broadcast)]
        words += ["dev", self.link]
        if self.address.version == 6:
            words.append("nodad")
        if self.deprecated:
            words.append("preferred_lft 0")
        return " ".join(words)


class AddRoute(_Change):
    """A network that is on the link of an interface."""

    kind: Literal["route"] = "route"
    link: str
    network: Network

    @property
    def command(self) -> str:
        """The equivalent command of iproute2."""
        return f"ip route add {self.network} dev {self.link}"


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
        """The equivalent command of procps; sysctl(8) writes a dot in a name as a slash."""
        return f"sysctl -w {self.path.translate({ord('/'): '.', ord('.'): '/'})}={self.value}"


class AddChain(_Change):
    """A chain of our own and the jump to it, the first rule of a built-in chain."""

    kind: Literal["chain"] = "chain"
    family: Literal[4, 6]
    table: str
    hook: str
    match: str = ""  #: of the jump; empty: every packet goes through the chain
    name: str
    rules: tuple[str, ...]

    @property
    def tool(self) -> str:
        """iptables or ip6tables."""
        return "iptables" if self.family == 4 else "ip6tables"

    @property
    def place(self) -> tuple[int, str, str]:
        """What tells chains apart; the rules in it do not."""
        return self.family, self.table, self.name

    @property
    def jump(self) -> str:
        """The rule of the built-in chain that leads to this one."""
        return f"{self.match} -j {self.name}".strip()

    def text(self, jump: bool) -> str:
        """Input of iptables-restore --noflush: the chain with exactly these rules, in one transaction."""
        rules = [f"-A {self.name} {rule}" for rule in self.rules]
        if jump:
            rules.append(f"-I {self.hook} 1 {self.jump}")
        return "\n".join([f"*{self.table}", f":{self.name} - [0:0]", *rules, "COMMIT", ""])

    @property
    def command(self) -> str:
        """The equivalent command of a shell, over several lines."""
        return f"{self.tool}-restore --noflush <<END\n{self.text(jump=True)}END"


Change = Annotated[SetLinkUp | AddAddress | AddRoute | SetSysctl | AddChain, Field(discriminator="kind")]
