"""A client's connection that lasts."""

import sys

from loaded_mp.lab.lab import Lab

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
