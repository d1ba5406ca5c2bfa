"""Transfers through a lab's VIPs, of which every byte has to arrive."""

import sys

from loaded_mp.lab.lab import Lab, in_url

_BIG_MIB = 20
#: Sends one datagram and prints whether it came back.
_ECHO = """
import os, socket, sys
vip, size = sys.argv[1], int(sys.argv[2])
echo = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
echo.settimeout(5)
echo.connect((vip, 7))
data = os.urandom(size)
echo.send(data)
print("same" if echo.recv(65536) == data else "other")
"""


def downloads(lab: Lab, vip: str) -> bool:
    """Whether /big comes down as it is."""
    checksum = lab.big_file(_BIG_MIB)
    command = f"curl -sgf http://{in_url(vip)}/big | sha256sum"
    return lab.client.run("sh", "-c", command, timeout_s=60).stdout.split()[0] == checksum


def uploads(lab: Lab, vip: str) -> bool:
    """Whether a request of some hundred kilobytes is read; nginx answers 405 once it has done so."""
    path = lab.folder / "upload"
    path.write_bytes(bytes(300_000))
    words = ("curl", "-sg", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "--data-binary")
    said = lab.client.run(*words, f"@{path}", f"http://{in_url(vip)}/").stdout
    return said.split()[0] in ("200", "405")


def comes_back(lab: Lab, vip: str, size: int) -> bool:
    """Whether a datagram of so many bytes comes back as it was sent."""
    return lab.client.run(sys.executable, "-c", _ECHO, vip, str(size)).stdout == "same\n"
