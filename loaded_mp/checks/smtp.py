"""The SMTP check: how a mail server greets."""

import contextlib
from typing import ClassVar, Literal

from loaded_mp.checks.check import Fault, Finding, PortCheck, shown
from loaded_mp.checks.stream import connected
from loaded_mp.fields import Endpoint


class SmtpCheck(PortCheck):
    """Wait for a greeting and say goodbye."""

    type: Literal["smtp"] = "smtp"

    usual_port: ClassVar[int | None] = 25

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if it greets with 220 (RFC 5321, 4.2)."""
        async with connected(endpoint) as stream:
            greeting = await stream.line()
            if greeting[:3] != "220":
                raise Fault(f"greeted with {shown(greeting)}")
            with contextlib.suppress(Fault, OSError):  # it is polite, and no more than that
                await stream.send(b"QUIT\r\n")
                await stream.line()
        return Finding(said=f"greeted with {shown(greeting)}")

    def question(self, endpoint: Endpoint) -> str:
        """As in "SMTP with 10.0.0.1:25"."""
        return f"SMTP with {endpoint}"

    def __str__(self) -> str:
        return f"SMTP{self.at_port}"
