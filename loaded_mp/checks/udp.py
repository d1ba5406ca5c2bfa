"""The UDP check: what is answered to a datagram."""

from typing import Literal

from pydantic import Field

from loaded_mp.checks.check import Bytes, Expression, Fault, Finding, PortCheck, matches, shown
from loaded_mp.checks.datagram import asked
from loaded_mp.fields import Endpoint


class UdpCheck(PortCheck):
    """Send a datagram and wait for another. Silence is a fault: nobody can tell it from a dead machine."""

    type: Literal["udp"] = "udp"
    send: Bytes = Field(min_length=1)
    expect: Expression = ""  #: found in the answer; empty: any will do

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if the first answer is as expected."""
        async with asked(endpoint, self.send.encode("latin-1")) as answered:
            answer = (await answered()).decode("latin-1")
        if not matches(self.expect, answer):
            raise Fault(f"answered {shown(answer)}, expected {self.expect!r}")
        return Finding(said=f"answered {shown(answer)}")

    def question(self, endpoint: Endpoint) -> str:
        """As in "ask udp 10.0.0.1:5000"."""
        return f"ask udp {endpoint}"

    def __str__(self) -> str:
        return f"UDP{self.at_port}{f' for {self.expect!r}' if self.expect else ''}"
