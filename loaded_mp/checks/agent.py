"""The agent check: what a program on the backend says of it, in HAProxy's words (agent-check)."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from loaded_mp.checks.check import Bytes, Check, Fault, Finding, SilentError, fault_of, is_local, shown
from loaded_mp.checks.stream import connected
from loaded_mp.fields import Endpoint, Port

_DOWN = ("down", "failed", "fail", "stopped")
_WANTED = {"ready": "ready", "drain": "drain", "maint": "maintenance"}


class AgentCheck(Check):
    """Connect and read one line: `75%`, `up`, `down`, `failed`, `stopped`, `ready`, `drain`, `maint`.

    As in HAProxy, `down` and the like may be followed by `#` and a reason, words that are not known are
    passed over, and an agent that is not there says nothing: its last word holds.
    """

    type: Literal["agent"] = "agent"
    port: Port
    send: Bytes = ""  #: said first
    rise: int = Field(default=1, ge=1, le=100)
    fall: int = Field(default=1, ge=1, le=100)

    silence_is_fault: ClassVar[bool] = False

    def port_of(self, own: int | None, listened: int | None) -> int | None:
        """An agent's is no port of the service."""
        return self.port

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves unless its agent says that it is down."""
        try:
            async with connected(endpoint) as stream:
                if self.send:
                    await stream.send(self.send.encode("latin-1"))
                return _read(await stream.line())
        except Fault as fault:
            raise SilentError(str(fault)) from None
        except OSError as error:
            if is_local(error):
                raise
            raise SilentError(fault_of(error)) from None

    def question(self, endpoint: Endpoint) -> str:
        """As in "ask the agent at 10.0.0.1:9999"."""
        return f"ask the agent at {endpoint}"

    def __str__(self) -> str:
        return f"agent port {self.port}"


def _read(line: str) -> Finding:
    """What a line says. Raises SilentError if it says nothing that is known."""
    said: dict[str, Any] = {}
    words, _, reason = line.partition("#")
    for word in re.split(r"[\s,]+", words.strip().lower()):
        if word in _DOWN:
            said["fault"] = f"{word}: {shown(reason.strip())}" if reason.strip() else word
        elif word in _WANTED:
            said["wanted"] = _WANTED[word]
        elif word == "up":
            said["said"] = "up"
        elif re.fullmatch(r"\d{1,3}%", word):
            said["percent"] = int(word[:-1])
    if not said:
        raise SilentError(f"answered {shown(line)}")
    return Finding(**{"said": f"answered {shown(line)}", **said})
