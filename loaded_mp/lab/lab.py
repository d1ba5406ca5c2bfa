"""Clients, a balancer and three backends in namespaces, IPv4 and IPv6.

client --- (public) balancer (private) --- [router] --- switch --- backend1, backend2, backend3
                    (outside) --- outside

A second way from backends to clients: client (direct) --- switch.
"""

import contextlib
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from loaded_mp.lab.backend import Backend
from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.namespace import Namespace, connect, new_prefix, remove_leftovers

VIP4, VIP6 = "192.0.2.10", "2001:db8:10::10"
VIPS = (VIP4, VIP6)
BACKENDS = 3
OUTSIDE4, OUTSIDE6 = "203.0.113.1", "2001:db8:3::1"
_BALANCER4, _BALANCER6 = "198.18.255.254", "2001:db8:1::ffff"
_STOP_S = 20.0


@dataclass(frozen=True)
class Options:
    """How a lab differs from the plain one."""

    sources: int = 300  #: source addresses of the client, of each family
    public_mtu: int = 1500
    private_mtu: int = 1500
    far_mtu: int | None = None  #: a router between balancer and backends, its far link with this MTU
    gateway: bool = False  #: give the balancer its private addresses and let it route, as a daemon would
    one_interface: bool = False  #: the balancer has one interface for both sides
    one_machine: bool = False  #: all backends' addresses in one namespace
    offloads: bool = True  #: off: every packet on a wire has its size and its checksum
    second_way: bool = False  #: the client is a router in the backends' network: 10.0.0.200 and fd00::c8
    direct: bool = False  #: that, and backends have the VIPs and answer from them that way
    outside: bool = False  #: a host beyond a third interface of the balancer, with HTTP and DNS


def in_url(address: str) -> str:
    """An address as it stands in a URL (RFC 3986, 3.2.2)."""
    return f"[{address}]" if ":" in address else address


class Lab:
    """The network, standing as long as the context lasts."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self._prefix = new_prefix()
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count()
        self._daemons: list[Daemon] = []
        self._captures = itertools.count()
        self._others = itertools.count()
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Self:
        remove_leftovers()
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=self._prefix)))
            self.folder.chmod(0o755)
            self.files = self.folder / "files"
            self.files.mkdir()
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _namespace(self, role: str) -> Namespace:
        namespace = Namespace(self._prefix + role)
        self._stack.callback(namespace.remove)
        self._namespaces.append(namespace)
        return namespace

    def _build(self) -> None:
        self.client = self._namespace("client")
        self.balancer = self._namespace("balancer")
        self.switch = self._namespace("switch")
        self.private = "public" if self.options.one_interface else "private"
        self._build_public_side()
        self._build_private_side()
        if self.options.second_way or self.options.direct:
            self._build_second_way()
        if self.options.direct:
            self._let_backends_answer()
        if self.options.outside:
            self._build_outside()
        if self.options.gateway:
            self._make_gateway()
        if not self.options.offloads:
            self._switch_offloads_off()
        for backend in self.backends:
            backend.start()

    def processes(self) -> list[int]:
        """Every process in the network."""
        return [pid for namespace in self._namespaces for pid in namespace.processes()]

    @property
    def sources4(self) -> list[str]:
        """The client's IPv4 addresses."""
        return [f"198.18.{n // 250}.{n % 250 + 1}" for n in range(self.options.sources)]

    @property
    def sources6(self) -> list[str]:
        """The client's IPv6 addresses."""
        return [f"2001:db8:1::{n + 1:x}" for n in range(self.options.sources)]

    def sources(self, vip: str) -> list[str]:
        """The client's addresses of the VIP's family."""
        return self.sources6 if ":" in vip else self.sources4

    def _build_public_side(self) -> None:
        mtu = self.options.public_mtu
        if self.options.one_interface:
            self.switch.ip(f"link add bridge mtu {mtu} type bridge mcast_snooping 0", "link set bridge up")
            connect(self.balancer, "public", self.switch, "to-balancer", mtu)
            connect(self.client, "eth0", self.switch, "to-client", mtu)
            self.switch.ip("link set to-balancer master bridge", "link set to-client master bridge")
        else:
            connect(self.client, "eth0", self.balancer, "public", mtu)
        self.client.ip(
            *(f"address add {source}/16 dev eth0" for source in self.sources4),
            *(f"address add {source}/64 dev eth0 nodad" for source in self.sources6),
            f"route add {VIP4} via {_BALANCER4}",
            f"route add {VIP6} via {_BALANCER6}",
            f"route add default via {_BALANCER4}",
            f"route add default via {_BALANCER6}",
        )
        self.balancer.ip(
            f"address add {_BALANCER4}/16 dev public", f"address add {_BALANCER6}/64 dev public nodad"
        )

    def _build_private_side(self) -> None:
        mtu = self.options.private_mtu
        gateway4, gateway6, net4, net6 = "10.0.0.254", "fd00::fe", "10.0.0", "fd00:"
        if not self.options.one_interface:
            self.switch.ip(f"link add bridge mtu {mtu} type bridge mcast_snooping 0", "link set bridge up")
        if self.options.far_mtu:
            self.router = self._namespace("router")
            connect(self.balancer, "private", self.router, "near", mtu)
            connect(self.router, "far", self.switch, "to-router", self.options.far_mtu)
            self.switch.ip("link set to-router master bridge")
            self.router.sysctl("net/ipv4/ip_forward", 1)
            self.router.sysctl("net/ipv6/conf/all/forwarding", 1)
            net4, net6 = "10.0.1", "fd00:1:"
            self.router.ip(
                "address add 10.0.0.253/24 dev near",
                "address add fd00::fd/64 dev near nodad",
                f"address add {net4}.254/24 dev far",
                f"address add {net6}:fe/64 dev far nodad",
                f"route add default via {gateway4}",
                f"route add default via {gateway6}",
            )
            gateway4, gateway6 = f"{net4}.254", f"{net6}:fe"
            # The balancer takes its backends for neighbours, so the router answers in their place.
            self.router.sysctl("net/ipv4/conf/near/proxy_arp", 1)
            self.router.sysctl("net/ipv6/conf/near/proxy_ndp", 1)
            for family in ("ipv4", "ipv6"):
                self.router.sysctl(f"net/{family}/neigh/near/proxy_delay", 0)
            self.router.ip(*(f"neighbor add proxy {net6}:{n} dev near" for n in range(1, BACKENDS + 1)))
        elif not self.options.one_interface:
            connect(self.balancer, "private", self.switch, "to-balancer", mtu)
            self.switch.ip("link set to-balancer master bridge")
        self.backend_networks = (f"{net4}.0/24", f"{net6}:/64")
        self._net4, self._net6, self._gateways = net4, net6, (gateway4, gateway6)
        self.backends: list[Backend] = []
        for number in range(1, BACKENDS + 1):
            self.backends.append(self._build_backend(number))

    def _build_backend(self, number: int) -> Backend:
        ipv4, ipv6 = f"{self._net4}.{number}", f"{self._net6}:{number}"
        if number == 1 or not self.options.one_machine:
            namespace = self._namespace(f"backend{number}")
            mtu = self.options.far_mtu or self.options.private_mtu
            connect(namespace, "eth0", self.switch, f"to-backend{number}", mtu)
            self.switch.ip(f"link set to-backend{number} master bridge")
        else:
            namespace = self.backends[0].namespace
        namespace.ip(f"address add {ipv4}/24 dev eth0", f"address add {ipv6}/64 dev eth0 nodad")
        if number == 1 or not self.options.one_machine:
            namespace.ip(*(f"route add default via {gateway}" for gateway in self._gateways))
        return Backend(self.folder, number, namespace, ipv4, ipv6)

    def _build_second_way(self) -> None:
        connect(self.client, "direct", self.switch, "to-client", self.options.private_mtu)
        self.switch.ip("link set to-client master bridge")
        self._routers = f"{self._net4}.200", f"{self._net6}:c8"
        for router, length in zip(self._routers, (24, 64), strict=True):
            self.client.ip(f"address add {router}/{length} dev direct nodad")

    def _let_backends_answer(self) -> None:
        for backend in self.backends:
            backend.take_vips(VIPS)
            for family, vip, router in zip(("-4", "-6"), VIPS, self._routers, strict=True):
                backend.namespace.ip(f"route add default via {router} table 100")
                backend.namespace.run(*f"ip {family} rule add from {vip} table 100".split())

    def _build_outside(self) -> None:
        self.outside = self._namespace("outside")
        connect(self.balancer, "outside", self.outside, "eth0")
        self.balancer.ip(
            "address add 203.0.113.254/24 dev outside", "address add 2001:db8:3::fe/64 dev outside nodad"
        )
        self.outside.ip(
            f"address add {OUTSIDE4}/24 dev eth0",
            f"address add {OUTSIDE6}/64 dev eth0 nodad",
        )
        Backend(self.folder, 0, self.outside, OUTSIDE4, OUTSIDE6).start()

    def _make_gateway(self) -> None:
        self.balancer.ip(
            f"address add 10.0.0.254/24 dev {self.private}",
            f"address add fd00::fe/64 dev {self.private} nodad",
        )
        if self.options.far_mtu:
            self.balancer.ip("route add 10.0.1.0/24 via 10.0.0.253", "route add fd00:1::/64 via fd00::fd")
        self.balancer.sysctl("net/ipv4/ip_forward", 1)
        self.balancer.sysctl("net/ipv6/conf/all/forwarding", 1)

    def _switch_offloads_off(self) -> None:
        for namespace in self._namespaces:
            links = json.loads(namespace.run("ip", "-json", "link", "show", "type", "veth").stdout)
            names = [link["ifname"] for link in links]
            namespace.run(sys.executable, "-m", "loaded_mp.lab.offloads", *names)

    def another_backend(self) -> Backend:
        """One more machine in the backends' network, which answers broadcasts and serves; no lab lists it."""
        backend = self._build_backend(BACKENDS + 1 + next(self._others))
        backend.answer_broadcasts()
        backend.start()
        return backend

    def cut_off(self, backend: Backend) -> None:
        """Take a backend's link away."""
        self.switch.ip(f"link set to-{backend.name} down")

    def let_backends_speak(self) -> None:
        """Let every speaker say a line on each of its connections."""
        (self.folder / "speaks").touch()

    def big_file(self, mib: int) -> str:
        """Have all backends serve /big of so many MiB; its SHA-256 in hexadecimal."""
        block = hashlib.shake_256(b"loaded-mp").digest(1 << 20)
        digest = hashlib.sha256()
        with (self.files / "big").open("wb") as file:
            for number in range(mib):
                piece = number.to_bytes(8, "big") + block[8:]
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()

    def config(
        self,
        weights: Sequence[int] = (1,) * BACKENDS,
        workers: int = 4,
        top: str = "",
        service: str = "",
        checked: bool = True,
    ) -> str:
        """A configuration for this network; `top` and `service` are more lines for these places."""
        check = "[service.check]\nport = 80\ninterval_s = 0.3\ntimeout_s = 0.3\nrise = 2\nfall = 2\n"
        goodbye = "" if "goodbye_s" in top else "goodbye_s = 0\n"
        networks = ", ".join(f'"{network}"' for network in self.backend_networks)
        backends = "".join(
            f'[[service.backend]]\nname = "{each.name}"\naddress = "{address}"\nweight = {weight}\n'
            for each, weight in zip(self.backends, weights, strict=True)
            for address in (each.ipv4, each.ipv6)
        )
        return (
            f'workers = {workers}\nmetrics_listen = ""\n{goodbye}{top}\n'
            f'[network]\npublic_interface = "public"\nprivate_interface = "{self.private}"\n'
            f'private_addresses = ["10.0.0.254/24", "fd00::fe/64"]\nbackend_networks = [{networks}]\n'
            f'[[service]]\nname = "web"\nvips = ["{VIP4}", "{VIP6}"]\n{service}\n'
            f"{check if checked else ''}{backends}"
        )

    def daemon(self, config: str, *flags: str) -> Daemon:
        """Start loaded-mp with this TOML and wait until it serves; it ends with the lab at the latest."""
        path = self.folder / f"loaded-mp-{next(self._numbers)}.toml"
        path.write_text(config)
        return self.start_daemon("-c", str(path), *flags).ready()

    def start_daemon(self, *words: str) -> Daemon:
        """Start loaded-mp with this command line, without waiting."""
        return self.start_daemon_by(loaded_mp(), *words)

    def start_daemon_by(self, *command: str) -> Daemon:
        """Start loaded-mp by a command that becomes it, without waiting."""
        log = self.folder / f"daemon-{next(self._numbers)}.log"
        output: IO[str] = self._stack.enter_context(log.open("w"))
        self._daemons.append(Daemon(self.balancer, log, self.balancer.start(*command, output=output)))
        return self._daemons[-1]

    def stop_daemons(self) -> None:
        """Stop those that still run, however they end: another one can start."""
        while self._daemons:
            with contextlib.suppress(RuntimeError):
                self._daemons.pop().stop()

    def answers(self, kind: str, vip: str, each: int, sources: Sequence[str]) -> dict[str, list[str]]:
        """Who answered `each` requests ("http" or "dns") from every source; errors begin with "error"."""
        words = (sys.executable, "-m", "loaded_mp.lab.traffic", kind, vip, str(each), *sources)
        answers: dict[str, list[str]] = json.loads(self.client.run(*words, timeout_s=300).stdout)
        return answers

    @contextlib.contextmanager
    def capture(self, namespace: Namespace, interface: str, *expression: str) -> Iterator[Path]:
        """Capture packets while the context lasts; the path of the file, complete after it.

        Raises RuntimeError with what tcpdump says if it does not start.
        """
        path = self.folder / f"{interface}-{next(self._captures)}.pcap"
        words = (*f"tcpdump -i {interface} -n -U --immediate-mode -Z root -w {path}".split(), *expression)
        process = namespace.start(*words, output=subprocess.PIPE)
        assert process.stdout
        said = ""
        while "listening on" not in said:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(words)}: {said}")
            said += line
        try:
            yield path
        finally:
            process.terminate()
            process.communicate(timeout=_STOP_S)
