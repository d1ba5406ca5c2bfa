"""One of a lab's backends: a web server and UDP services at two addresses."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from loaded_mp.lab.decapsulator import DEVICE
from loaded_mp.lab.namespace import Namespace
from loaded_mp.lab.speaker import PORT
from loaded_mp.lab.wait import wait_until

_STOP_S = 20.0
_NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; sendfile on;
  # Tests that last long have connections on which nobody speaks.
  keepalive_timeout 1h; client_header_timeout 1h; client_body_timeout 1h; send_timeout 1h;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    {listen}
    default_type text/plain;
    location = / {{ return 200 "{name}\\n"; }}
    location / {{ root {files}; }}
  }}
}}
"""


class Backend:
    """A backend's addresses, where it lives, and its servers."""

    def __init__(self, folder: Path, number: int, namespace: Namespace, ipv4: str, ipv6: str) -> None:
        """`folder` is the lab's; its `files` are served."""
        self.name = f"backend{number}"
        self.namespace = namespace
        self.ipv4, self.ipv6 = ipv4, ipv6
        self._folder = folder / self.name
        self._folder.mkdir()
        self._speaks = folder / "speaks"
        self._speaks.touch()
        self._files = folder / "files"
        self._addresses = [ipv4, ipv6]
        self._web: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the web server and the UDP services, and wait until they answer."""
        self.start_web()
        self.namespace.start(sys.executable, "-m", "loaded_mp.lab.udp_server", self.name, *self._addresses)
        self.namespace.start(
            sys.executable, "-m", "loaded_mp.lab.speaker", self.name, str(self._speaks), *self._addresses
        )
        wait_until(lambda: self._listens("-u", 53), f"{self.name} answers DNS")
        wait_until(lambda: self._listens("-t", PORT), f"{self.name} speaks")

    def take_vips(self, vips: Sequence[str]) -> None:
        """Have VIPs and serve on them, but let no neighbour know; before `start`."""
        self._addresses += vips
        for vip in vips:
            self.namespace.ip(f"address add {vip} dev lo nodad preferred_lft 0")
        self.namespace.sysctl("net/ipv4/conf/all/arp_ignore", 1)
        self.namespace.sysctl("net/ipv4/conf/all/arp_announce", 2)

    def take_out(self) -> None:
        """Take packets out of tunnels."""
        self.namespace.sysctl("net/ipv4/conf/all/rp_filter", 0)
        self.namespace.sysctl("net/ipv4/conf/default/rp_filter", 0)
        self.namespace.start(sys.executable, "-m", "loaded_mp.lab.decapsulator")
        wait_until(
            lambda: not self.namespace.run("ip", "link", "set", DEVICE, "up", check=False).returncode,
            f"{self.name} takes packets out of tunnels",
        )

    def answer_broadcasts(self) -> None:
        """Answer echo requests to all, as the kernel does not of itself over IPv4."""
        self.namespace.sysctl("net/ipv4/icmp_echo_ignore_broadcasts", 0)

    def start_web(self) -> None:
        """Start nginx and wait until it listens."""
        listen = (f"listen [{each}]:80;" if ":" in each else f"listen {each}:80;" for each in self._addresses)
        configuration = _NGINX.format(
            folder=self._folder, files=self._files, name=self.name, listen=" ".join(listen)
        )
        (self._folder / "nginx.conf").write_text(configuration)
        log = self._folder / "error.log"
        self._web = self.namespace.start(
            "nginx", "-e", str(log), "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")
        )
        wait_until(lambda: self._listens("-t", 80), f"{self.name} serves HTTP")

    def stop_web(self) -> None:
        """Stop nginx, at once."""
        assert self._web
        self._web.terminate()
        self._web.wait(_STOP_S)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse new HTTP connections while the context lasts; those that stand go on."""
        rule = "-p tcp --dport 80 --syn -j REJECT --reject-with tcp-reset"
        for tool in ("iptables", "ip6tables"):
            self.namespace.run(tool, "-w", "-I", "INPUT", *rule.split())
        try:
            yield
        finally:
            for tool in ("iptables", "ip6tables"):
                self.namespace.run(tool, "-w", "-D", "INPUT", *rule.split())

    def _listens(self, kind: str, port: int) -> bool:
        listening = self.namespace.run("ss", "-Hln", kind).stdout
        return f"{self.ipv4}:{port} " in listening and f"[{self.ipv6}]:{port} " in listening
