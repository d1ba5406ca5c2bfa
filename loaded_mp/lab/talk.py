"""Clients' connections that last."""

import sys

from loaded_mp.lab.clients import KINDS
from loaded_mp.lab.lab import Lab
from loaded_mp.lab.namespace import Namespace
from loaded_mp.lab.speaker import PORT

#: Sends a line at each command on its input to a connected socket and prints what happens to it.
_TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), timeout=10, source_address=(sys.argv[2], 0)) as web:
    print("connected", flush=True)
    for line in sys.stdin:
        try:
            web.sendall(b"GET / HTTP/1.1\\r\\nHost: vip\\r\\n\\r\\n")
            print(web.recv(1000).decode().split()[-1] or "closed", flush=True)
        except ConnectionResetError:
            print("reset", flush=True)
            break
"""


class Talk:
    """One connection that lasts."""

    def __init__(self, lab: Lab, vip: str, source: str) -> None:
        self._process = lab.client.talk(sys.executable, "-c", _TALK, vip, source)
        assert self.hear() == "connected"

    def ask(self) -> str:
        """Ask once more over the same connection; who answers, or "reset"."""
        self.say()
        return self.hear()

    def say(self) -> None:
        """Ask once more, without waiting for the answer."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """The answer to what was asked."""
        assert self._process.stdout
        return self._process.stdout.readline().strip()


#: Says and hears lines over one connection, at commands on its input.
_LINE = """
import socket, sys
address, port, source = sys.argv[1:]
bound = (source, 0) if source else None
try:
    line = socket.create_connection((address, int(port)), timeout=5, source_address=bound)
except OSError as error:
    sys.exit(print(type(error).__name__, 0))
print("connected", line.getsockname()[1], flush=True)
heard = b""
for command in sys.stdin:
    try:
        if command.startswith("say "):
            line.sendall(command[4:].encode())
            continue
        line.settimeout(float(command))
        while b"\\n" not in heard:
            piece = line.recv(1000)
            heard += piece or b"closed\\n"
        first, heard = heard.split(b"\\n", 1)
        print(first.decode(), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
        break
"""


class Line:
    """One connection to a lab's speaker, or to who else answers lines."""

    def __init__(self, namespace: Namespace, address: str, source: str = "", port: int = PORT) -> None:
        """`source`: the address to speak from; empty: the kernel's choice."""
        self._process = namespace.talk(sys.executable, "-c", _LINE, address, str(port), source)
        assert self._process.stdout
        self.begun, own_port = self._process.stdout.readline().split()
        self.port = int(own_port)

    def ask(self, text: str = "hello", timeout_s: float = 5.0) -> str:
        """Say something and hear the answer, as `hear`."""
        self.say(text)
        return self.hear(timeout_s)

    def say(self, text: str = "hello") -> None:
        """Send a line."""
        self._write(f"say {text}")

    def hear(self, timeout_s: float = 5.0) -> str:
        """The next line that comes, or "nothing", "reset" or "closed"."""
        self._write(str(timeout_s))
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(5)

    def _write(self, command: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()


class Clients:
    """Connections of all sources of a VIP's family, see lab/clients.py."""

    def __init__(self, lab: Lab, vip: str, mib: int) -> None:
        """`mib`: the size of /big. They are there when this returns."""
        sources = lab.sources(vip)
        self._process = lab.client.talk(
            sys.executable, "-m", "loaded_mp.lab.clients", vip, str(mib << 20), *sources
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{KINDS * len(sources)}\n"

    def served(self) -> str:
        """Let all come to their ends: how many were served throughout, and what became of others."""
        said, _ = self._process.communicate("\n", timeout=90)
        return said.strip()
