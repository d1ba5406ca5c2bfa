"""Every kind of check against real servers: seen up, seen down with a cause, seen up again, in time."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.backend import Backend
from loaded_mp.lab.daemon import Daemon
from loaded_mp.lab.lab import VIP4, VIP6, Lab, Options
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import BackendStatus

INTERVAL_S, FAST_S, TIMEOUT_S, FALL = 0.4, 0.1, 0.3, 2
#: Until a change is seen at the latest: the first failure, those that are asked for fast, and some room.
SEEN_S = INTERVAL_S + FALL * (FAST_S + TIMEOUT_S) + 1.0

NGINX = """
daemon off; master_process off; error_log stderr crit; pid {folder}/tls.pid; events {{}}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen {ipv4}:443 ssl; listen [{ipv6}]:443 ssl;
    ssl_certificate {folder}/tls.pem; ssl_certificate_key {folder}/tls.pem;
    location / {{ return 200 "all is well\\n"; }}
  }}
}}
"""
NAMED = """
options {{
  directory "{folder}/named"; pid-file none; session-keyfile none; recursion no; dnssec-validation no;
  listen-on port 5353 {{ {ipv4}; }}; listen-on-v6 port 5353 {{ {ipv6}; }};
}};
controls {{}};
zone "example.org" {{ type primary; file "{folder}/zone"; }};
"""
ZONE = """$TTL 60
@ SOA ns.example.org. root.example.org. 1 60 60 60 60
@ NS ns
ns A 10.0.0.1
www A 10.9.9.9
"""
SMTPD = """
listen on {ipv4} port 25 hostname mail.example.org
listen on {ipv6} port 25 hostname mail.example.org
action "none" expand-only
match for local action "none"
"""
#: Says the first line of a file to whoever connects.
AGENT = """
import asyncio, pathlib, sys
async def serve(reader, writer):
    writer.write(pathlib.Path(sys.argv[1]).read_bytes())
    writer.close()
async def main():
    async with await asyncio.start_server(serve, sys.argv[2:], 9999) as server:
        await server.serve_forever()
asyncio.run(main())
"""
#: By the name of a service: its check, what it needs, and what it says of a backend that is up.
CHECKS = {
    "tcp": ("port = 80", "", "accepted"),
    "http": ('type = "http"\nexpect = "backend1"', "", "status 200"),
    "https": (
        'type = "https"\nverify = true\nca_file = "{folder}/tls.pem"\nserver_name = "web.example"\n'
        'expect = "well"',
        "nginx",
        "status 200",
    ),
    "tls": ('type = "tls"', "nginx", "handshake done"),
    "icmp": ('type = "icmp"', "", "echoed"),
    "udp": ('type = "udp"\nport = 7\nsend = "\\u0001x"\nexpect = "^\\u0001x$"', "", "answered '\\x01x'"),
    "dns": ('type = "dns"\nport = 5353\nname = "www.example.org"\nexpect = "10.9.9.9"', "named", "10.9.9.9"),
    "redis": ('port = 6379\nsend = "PING\\r\\n"\nexpect = "PONG"', "redis-server", "answered '+PONG\\r\\n'"),
    "smtp": ('type = "smtp"', "smtpd", "greeted with '220 mail.example.org"),
    "agent": ('type = "agent"\nport = 9999', "", "up"),
    "command": (
        'type = "command"\n'
        'run = ["/usr/bin/dig", "+short", "+time=1", "+tries=1", "@{{address}}", "x", "TXT"]',
        "",
        "status 0",
    ),
}
SERVED = {name: check for name, check in CHECKS.items() if not check[1] or shutil.which(check[1])}


class Servers:
    """The servers of one backend, beside those that it has anyway."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        self.folder, self._backend = folder, backend
        self._running: list[subprocess.Popen[str]] = []
        (folder / "named").mkdir()  # nginx takes the folder for itself
        self.say("up")
        # Before it greets, a mail server wants to know the names of its clients.
        (folder / "resolv.conf").write_text(f"nameserver {backend.ipv4}\n")
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
            " -subj /CN=web.example -addext subjectAltName=DNS:web.example"
            f" -keyout {folder}/key -out {folder}/crt".split(),
            check=True,
            capture_output=True,
        )
        (folder / "tls.pem").write_text((folder / "crt").read_text() + (folder / "key").read_text())
        (folder / "zone").write_text(ZONE)
        for name, text in (("nginx", NGINX), ("named", NAMED), ("smtpd", SMTPD)):
            (folder / f"{name}.conf").write_text(
                text.format(folder=folder, ipv4=backend.ipv4, ipv6=backend.ipv6)
            )

    def say(self, line: str) -> None:
        """What the agent says from now on."""
        new = self.folder / "agent.new"
        new.write_text(f"{line}\n")
        new.rename(self.folder / "agent")

    def start(self) -> None:
        """Start all that the machine has."""
        addresses = (self._backend.ipv4, self._backend.ipv6)
        for words in (
            ("nginx", "-e", "stderr", "-c", f"{self.folder}/nginx.conf"),
            ("named", "-g", "-u", "root", "-c", f"{self.folder}/named.conf"),
            (
                "redis-server",
                "--bind",
                *addresses,
                "--protected-mode",
                "no",
                "--save",
                "",
                "--daemonize",
                "no",
            ),
            (
                "unshare",
                "-m",
                "sh",
                "-c",
                f"cd {self.folder}; mount --bind resolv.conf /etc/resolv.conf; exec smtpd -d -f smtpd.conf",
            ),
            (sys.executable, "-c", AGENT, f"{self.folder}/agent", *addresses),
        ):
            if shutil.which(words[0]):
                self._running.append(self._backend.namespace.start(*words))
        self._backend.start_web()

    def stop(self) -> None:
        """Stop them at once."""
        self._backend.stop_web()
        for process in self._running:
            process.kill()
            process.wait(10)
        self._running = []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=2)) as lab:
        yield lab


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Servers:
    folder = lab.folder / "servers"
    folder.mkdir()
    lab.backends[0].stop_web()
    servers = Servers(folder, lab.backends[0])
    servers.start()
    return servers


def config_of(lab: Lab, servers: Servers) -> str:
    """A service for each kind of check, all with the first backend in both families."""
    lines = lab.config(checked=False).partition("[[service]]")[0]
    for number, (name, (check, _, _)) in enumerate(SERVED.items()):
        lines += (
            f'[[service]]\nname = "{name}"\nvips = ["{VIP4}", "{VIP6}"]\nlisten = ["tcp/{8000 + number}"]\n'
            f'initial = "down"\n[service.check]\n{check.format(folder=servers.folder)}\n'
            f"interval_s = {INTERVAL_S}\nfast_interval_s = {FAST_S}\ntimeout_s = {TIMEOUT_S}\n"
            f"fall = {FALL}\nrise = 1\n"
            f'[[service.backend]]\naddress = "{lab.backends[0].ipv4}"\n'
            f'[[service.backend]]\naddress = "{lab.backends[0].ipv6}"\n'
        )
    return lines


def by_service(daemon: Daemon) -> dict[str, list[BackendStatus]]:
    return {service.name: list(service.backends) for service in daemon.status().services}


def changed(daemon: Daemon, up: bool, but: tuple[str, ...] = ()) -> dict[str, float]:
    """Wait until all that are not `but` have changed; after how many seconds each had at the latest."""
    began_s = time.monotonic()
    seen: dict[str, float] = {}

    def all_changed() -> bool:
        for name, backends in by_service(daemon).items():
            if all(each.up is up for each in backends):
                seen.setdefault(name, time.monotonic() - began_s)
        return seen.keys() >= SERVED.keys() - set(but)

    try:
        wait_until(all_changed, "all have changed", 20)
    except TimeoutError:
        causes = {name: [each.cause for each in backends] for name, backends in by_service(daemon).items()}
        pytest.fail(f"unchanged: {SERVED.keys() - set(but) - seen.keys()} of {causes}")
    return seen


def test_every_kind_sees_real_servers_come_and_go(lab: Lab, servers: Servers) -> None:
    daemon = lab.daemon(config_of(lab, servers))
    print("up after", changed(daemon, up=True))
    for name, backends in by_service(daemon).items():
        for each in backends:
            assert SERVED[name][2] in each.cause
            days = (each.certificate_expires_s - time.time()) / 86_400 if each.certificate_expires_s else 0
            assert days == (pytest.approx(30, abs=0.1) if name in ("https", "tls") else 0)

    servers.stop()
    lasting = ("icmp", "udp", "command", "agent")  # the machine lives, and an agent that is gone says nothing
    seen = changed(daemon, up=False, but=lasting)
    print("servers stopped: down after", seen)
    assert max(seen.values()) < SEEN_S
    for name, backends in by_service(daemon).items():
        assert all(each.up for each in backends) is (name in lasting), name
    servers.start()
    changed(daemon, up=True)

    lab.switch.ip("link set to-backend1 down")
    seen = changed(daemon, up=False, but=("agent",))
    print("cable cut: down after", seen)
    assert max(seen.values()) < SEEN_S
    lab.switch.ip("link set to-backend1 up")
    changed(daemon, up=True)
    assert "Traceback" not in daemon.log
    assert "event=checks-hindered" not in daemon.log
    daemon.stop()


def test_an_agent_steers(lab: Lab, servers: Servers) -> None:
    daemon = lab.daemon(config_of(lab, servers))

    def says(line: str, up: bool, weight: int) -> None:
        servers.say(line)
        wait_until(
            lambda: all(
                (each.up, each.effective_weight) == (up, weight) for each in by_service(daemon)["agent"]
            ),
            f"{line} has its effect",
        )

    says("up", True, 1)
    says("drain", True, 0)
    says("ready", True, 1)
    says("down # on fire", False, 0)
    says("up 0%", True, 0)
    says("100%", True, 1)
    daemon.stop()
    assert "event=backend-share" in daemon.log
    assert "cause=\"ask the agent at 10.0.0.1:9999: down: 'on fire'\"" in daemon.log


def test_one_that_joins_serves_after_its_first_success(lab: Lab, servers: Servers) -> None:
    """A backend that was never there gets nobody; one that is there is used at once."""
    text = lab.config(workers=1)
    only_first = text.partition("[[service.backend]]")[0]
    for address in (lab.backends[0].ipv4, lab.backends[0].ipv6):
        only_first += f'[[service.backend]]\naddress = "{address}"\n'
    path = lab.folder / "joins.toml"
    path.write_text(only_first)
    daemon = lab.start_daemon("-c", str(path)).ready()
    path.write_text(
        f'{only_first}[[service.backend]]\naddress = "10.0.0.2"\n[[service.backend]]\naddress = "10.0.0.77"\n'
    )
    lab.balancer.run(sys.executable, "-m", "loaded_mp", "reload")
    wait_until(lambda: daemon.backends()["10.0.0.2"].up, "the second backend is up")
    assert not daemon.backends()["10.0.0.77"].up
    assert daemon.backends()["10.0.0.77"].effective_weight == 0
    daemon.logged("event=backend-down service=web backend=10.0.0.77")
    assert not daemon.backends()["10.0.0.77"].up
    daemon.stop()
    assert "event=backend-up service=web backend=10.0.0.77" not in daemon.log
