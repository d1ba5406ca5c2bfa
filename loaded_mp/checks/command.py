"""The command check: how a program of the operator's ends."""

from typing import Literal

from pydantic import Field

from loaded_mp.checks.check import Check, Fault, Finding
from loaded_mp.checks.program import User, Words, run_program
from loaded_mp.fields import Endpoint

#: Stand for those of the backend in the words of a command.
_ADDRESS, _PORT = "{address}", "{port}"


class CommandCheck(Check):
    """Run a program. Status 0 is good; all others are not, unless it is `weighted`.

    `weighted` is keepalived's MISC check with `misc_dynamic`: 1 is a fault, and from 2 on the backend serves
    with a weight of the status less 2, in place of the configured one. 0 leaves the weight as it was.
    """

    type: Literal["command"] = "command"
    run: Words = Field(min_length=1)
    user: User = "nobody"  #: whom it runs as
    weighted: bool = False

    def port_of(self, own: int | None, listened: int | None) -> int | None:
        """For its words."""
        return own or listened

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if the program says so by its status. It has until `timeout_s`, and is then killed."""
        words = [
            word.replace(_ADDRESS, str(endpoint.ip)).replace(_PORT, str(endpoint.port or ""))
            for word in self.run
        ]
        status, said = await run_program(words, self.user)
        if status and not (self.weighted and status >= 2):
            raise Fault(said)
        return Finding(said=said, weight=status - 2 if status else None)

    def question(self, endpoint: Endpoint) -> str:
        """As in "run /usr/local/bin/check for 10.0.0.1"."""
        return f"run {self.run[0]} for {endpoint}"

    def __str__(self) -> str:
        return f"command {self.run[0]}"
