"""The TLS check: whether a handshake succeeds."""

from typing import ClassVar, Literal

from loaded_mp.checks.check import Finding, shown
from loaded_mp.checks.stream import Conversation, OverTls, connected
from loaded_mp.fields import Endpoint


class TlsCheck(OverTls, Conversation):
    """Shake hands, perhaps say something and wait for an answer."""

    type: Literal["tls"] = "tls"

    usual_port: ClassVar[int | None] = 443

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves once the handshake is over and what is expected was said."""
        async with connected(endpoint, self) as stream:
            expires_s = stream.certificate_expires_s()
            answer = await stream.converse(self.send, self.expect)
        said = f"answered {shown(answer)}" if self.expect else "handshake done"
        return Finding(said=said, certificate_expires_s=expires_s)

    def question(self, endpoint: Endpoint) -> str:
        """As in "TLS with 10.0.0.1:443"."""
        return f"TLS with {endpoint}"

    def __str__(self) -> str:
        return f"TLS{self.at_port}"
