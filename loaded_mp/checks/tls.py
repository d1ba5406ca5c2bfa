"""The TLS check: whether a handshake succeeds."""

from typing import Literal

from loaded_mp.checks.check import Finding, at, shown
from loaded_mp.checks.stream import Conversation, OverTls, connected
from loaded_mp.fields import Address, Port


class TlsCheck(OverTls, Conversation):
    """Shake hands, perhaps say something and wait for an answer."""

    type: Literal["tls"] = "tls"
    port: Port = 443

    async def attempt(self, address: Address) -> Finding:
        """Serves once the handshake is over and what is expected was said."""
        async with connected(address, self.port, self) as stream:
            expires_s = stream.certificate_expires_s()
            answer = await stream.converse(self.send, self.expect)
        said = f"answered {shown(answer)}" if self.expect else "handshake done"
        return Finding(said=said, certificate_expires_s=expires_s)

    def question(self, address: Address) -> str:
        """As in "TLS with 10.0.0.1:443"."""
        return f"TLS with {at(address, self.port)}"

    def __str__(self) -> str:
        return f"TLS port {self.port}"
