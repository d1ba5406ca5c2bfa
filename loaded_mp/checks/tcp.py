"""The TCP check: whether a connection comes about, and something is said on it."""

from typing import Literal

from loaded_mp.checks.check import Finding, shown
from loaded_mp.checks.stream import Conversation, connect, connected
from loaded_mp.fields import Endpoint


class TcpCheck(Conversation):
    """Connect, perhaps say something and wait for an answer, and close again."""

    type: Literal["tcp"] = "tcp"

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves once it has accepted, or has said what is expected."""
        if not (self.send or self.expect):
            (await connect(endpoint)).close()
            return Finding(said="accepted")
        async with connected(endpoint) as stream:
            answer = await stream.converse(self.send, self.expect)
        return Finding(said=f"answered {shown(answer)}" if self.expect else "accepted")

    def question(self, endpoint: Endpoint) -> str:
        """As in "connect to [fd00::1]:80"."""
        return f"connect to {endpoint}"

    def __str__(self) -> str:
        return f"TCP{self.at_port}{f' for {self.expect!r}' if self.expect else ''}"
