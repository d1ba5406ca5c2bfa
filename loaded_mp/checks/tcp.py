"""The TCP check: whether a connection comes about, and something is said on it."""

from typing import Literal

from loaded_mp.checks.check import Finding, at, shown
from loaded_mp.checks.stream import Conversation, connect, connected
from loaded_mp.fields import Address, Port


class TcpCheck(Conversation):
    """Connect, perhaps say something and wait for an answer, and close again."""

    type: Literal["tcp"] = "tcp"
    port: Port

    async def attempt(self, address: Address) -> Finding:
        """Serves once it has accepted, or has said what is expected."""
        if not (self.send or self.expect):
            (await connect(address, self.port)).close()
            return Finding(said="accepted")
        async with connected(address, self.port) as stream:
            answer = await stream.converse(self.send, self.expect)
        return Finding(said=f"answered {shown(answer)}" if self.expect else "accepted")

    def question(self, address: Address) -> str:
        """As in "connect to [fd00::1]:80"."""
        return f"connect to {at(address, self.port)}"

    def __str__(self) -> str:
        return f"TCP port {self.port}{f' for {self.expect!r}' if self.expect else ''}"
