"""The ways from client to backend that are compared, each on a lab of its own, all standing at once."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loaded_mp.lab.lab import VIPS, Lab, Options, in_url
from loaded_mp.lab.wait import wait_until
from loaded_mp.memory.arena import why_no_arenas

#: iperf3 takes one client at a time: one port, and one server on each backend, for each.
IPERF_PORTS = range(5201, 5209)
_PORTS = (80, *IPERF_PORTS)
_SOURCES = 8
#: Clients run on one core, backends on another where there is one.
CLIENT_CORE = "0"
BACKEND_CORE = str(min(1, len(os.sched_getaffinity(0)) - 1))


@dataclass(frozen=True)
class Way:
    """One standing way. `target` gives the address that clients use, by family."""

    name: str
    lab: Lab
    targets: dict[int, str]
    udp: bool = True  #: whether it forwards UDP at all

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all its processes but in its turns, so that it takes no time from other ways."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run as long as the context lasts."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.lab.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


#: Builds a way that stands as long as the context lasts.
Builder = Callable[[], contextlib.AbstractContextManager[Way]]


def _vips() -> dict[int, str]:
    return {4: VIPS[0], 6: VIPS[1]}


def _prepare(lab: Lab) -> None:
    """iperf3 servers, cores and sysctls; without the latter reused ports stall for a second."""
    for backend in lab.backends:
        for port in IPERF_PORTS:
            backend.namespace.start("taskset", "-c", BACKEND_CORE, "iperf3", "-s", "-p", str(port))
        for pid in backend.namespace.processes():
            backend.namespace.run("taskset", "-a", "-p", "-c", BACKEND_CORE, str(pid), check=False)
        backend.namespace.sysctl("net/ipv4/tcp_max_tw_buckets", 0)
    for namespace in (lab.client, lab.balancer):
        namespace.sysctl("net/ipv4/tcp_max_tw_buckets", 0)
        namespace.sysctl("net/ipv4/ip_local_port_range", "1024 65001")


@contextlib.contextmanager
def _gateway() -> Iterator[Lab]:
    with Lab(Options(sources=_SOURCES, gateway=True)) as lab:
        _prepare(lab)
        for vip in VIPS:
            lab.balancer.ip(f"address add {vip} dev public {'nodad' if ':' in vip else ''}")
        yield lab


@contextlib.contextmanager
def routing() -> Iterator[Way]:
    """No balancer: the client speaks with a backend. The limit."""
    with _gateway() as lab:
        yield Way("routing", lab, {4: lab.backends[0].ipv4, 6: lab.backends[0].ipv6})


@contextlib.contextmanager
def dnat() -> Iterator[Way]:
    """iptables DNAT; as with loaded-mp, a source stays with its backend (iperf3 needs that)."""
    with _gateway() as lab:
        for tool, vip in (("iptables", VIPS[0]), ("ip6tables", VIPS[1])):
            first, *_, last = [each.ipv6 if ":" in vip else each.ipv4 for each in lab.backends]
            rule = f"-t nat -A PREROUTING -d {vip} -j DNAT --to-destination {first}-{last} --persistent"
            lab.balancer.run(tool, *rule.split())
        yield Way("iptables DNAT", lab, _vips())


@contextlib.contextmanager
def ipvs() -> Iterator[Way]:
    """Kernel LVS with NAT."""
    with _gateway() as lab:
        for mark, (tool, vip) in enumerate((("iptables", VIPS[0]), ("ip6tables", VIPS[1])), 1):
            rule = f"-t mangle -A PREROUTING -d {vip} -j MARK --set-mark {mark}"
            lab.balancer.run(tool, *rule.split())
            family = ["-6"] if ":" in vip else []
            lab.balancer.run("ipvsadm", "-A", "-f", str(mark), *family, "-s", "rr", "-p")
            for backend in lab.backends:
                address = in_url(backend.ipv6 if ":" in vip else backend.ipv4)
                lab.balancer.run("ipvsadm", "-a", "-f", str(mark), *family, "-r", f"{address}:0", "-m")
        yield Way("LVS (IPVS NAT)", lab, _vips())


def has_ipvs() -> bool:
    """Whether this kernel has it; `ipvsadm` loads the module itself."""
    if not shutil.which("ipvsadm"):
        return False
    return subprocess.run(["ipvsadm", "-L"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def haproxy() -> Iterator[Way]:
    """HAProxy, mode tcp."""
    with _gateway() as lab:
        lines = [
            "global", " maxconn 4000", " nbthread 2",
            "defaults", " mode tcp", " balance source",
            " timeout connect 5s", " timeout client 60s", " timeout server 60s",
        ]  # fmt: skip
        for port in _PORTS:
            lines += [f"listen l{port}", f" bind {VIPS[0]}:{port}", f" bind [{VIPS[1]}]:{port}"]
            lines += [f" server {each.name} {each.ipv4}:{port}" for each in lab.backends]
        path = lab.folder / "haproxy.cfg"
        path.write_text("\n".join(lines) + "\n")
        lab.balancer.start("haproxy", "-db", "-f", str(path))
        _wait_for_proxy(lab)
        yield Way("HAProxy (tcp)", lab, _vips(), udp=False)


def _nginx_servers(lab: Lab, port: int) -> str:
    return " ".join(f"server {each.ipv4}:{port};" for each in lab.backends)


def _wait_for_proxy(lab: Lab) -> None:
    def listens() -> bool:
        return f"{VIPS[0]}:{IPERF_PORTS[-1]} " in lab.balancer.run("ss", "-Hltn").stdout

    wait_until(listens, "the proxy listens")


@contextlib.contextmanager
def nginx_stream() -> Iterator[Way]:
    """nginx as a TCP proxy."""
    with _gateway() as lab:
        servers = "".join(
            f"upstream u{port} {{ hash $remote_addr; {_nginx_servers(lab, port)} }}\n"
            f"server {{ listen {VIPS[0]}:{port}; listen [{VIPS[1]}]:{port}; proxy_pass u{port}; }}\n"
            for port in _PORTS
        )
        path = lab.folder / "stream.conf"
        path.write_text(
            "include /etc/nginx/modules-enabled/*-stream.conf;\n"
            f"daemon off; worker_processes 2; pid {lab.folder}/stream.pid; error_log /dev/null;\n"
            f"events {{ worker_connections 4000; }}\nstream {{\n{servers}}}\n"
        )
        lab.balancer.start("nginx", "-e", "/dev/null", "-c", str(path))
        _wait_for_proxy(lab)
        yield Way("nginx (stream)", lab, _vips(), udp=False)


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def queue_alone(workers: int) -> Builder:
    """Routing with each packet accepted unread by userspace: the limit of everything behind a queue.

    With two workers one serves each direction.
    """

    @contextlib.contextmanager
    def path() -> Iterator[Way]:
        with _gateway() as lab:
            for tool, network in zip(("iptables", "ip6tables"), lab.backend_networks, strict=True):
                there, back = f"-t raw -A PREROUTING -d {network}", f"-t mangle -A POSTROUTING -s {network}"
                for rule, number in ((there, 0), (back, workers - 1)):
                    lab.balancer.run(tool, *rule.split(), "-j", "NFQUEUE", "--queue-num", str(number))
            program = str(Path(__file__).with_name("accept_all.py"))
            lab.balancer.start(sys.executable, program, str(workers))
            wait_until(lambda: _served_queues(lab) == workers, "the queues are served", 60)
            target4, target6 = lab.backends[0].ipv4, lab.backends[0].ipv6
            yield Way(f"queue alone, {_workers(workers)}", lab, {4: target4, 6: target6})

    return path


@contextlib.contextmanager
def hooks_alone() -> Iterator[Way]:
    """Routing with the tables and the conntrack that the fast path's marks need: its limit."""
    with _gateway() as lab:
        for table, hook, match in (("raw", "PREROUTING", "mark"), ("mangle", "POSTROUTING", "connmark")):
            rule = f"-t {table} -A {hook} -m {match} --mark 1 -j RETURN"
            for tool in ("iptables", "ip6tables"):
                lab.balancer.run(tool, *rule.split())
        yield Way("hooks alone", lab, {4: lab.backends[0].ipv4, 6: lab.backends[0].ipv6})


def _served_queues(lab: Lab) -> int:
    return len(lab.balancer.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout.splitlines())


#: What is measured of loaded-mp: forwarding and fast_path.
_WAYS = {
    "rewrite": ("rewrite", "off"),
    "fast path": ("rewrite", "auto"),
    "redirect": ("rewrite", "redirect"),
    "conntrack": ("conntrack", "off"),
}


def loaded_mp(name: str, workers: int) -> Builder:
    """loaded-mp itself, in one of its ways."""
    forwarding, fast_path = _WAYS[name]

    @contextlib.contextmanager
    def path() -> Iterator[Way]:
        with Lab(Options(sources=_SOURCES)) as lab:
            _prepare(lab)
            way = f'forwarding = "{forwarding}"\nlisten = ["tcp", "udp/1-32767", "icmp"]'
            top = f'fast_path = "{fast_path}"'
            lab.daemon(lab.config(workers=workers, top=top, service=way, checked=False))
            yield Way(f"loaded-mp {name}, {_workers(workers)}", lab, _vips())

    return path


def all_paths(quick: bool) -> list[Builder]:
    """What this machine can compare; fewer if it has to be quick."""
    paths: list[Builder] = [routing, dnat, haproxy]
    if not quick:
        paths.append(nginx_stream)
    if has_ipvs():
        paths.append(ipvs)
    if not quick:
        paths += [queue_alone(number) for number in (1, 2)]
    paths += [loaded_mp("rewrite", number) for number in ((1, 2) if quick else (1, 2, 4))]
    if not why_no_arenas():
        paths += [hooks_alone, loaded_mp("fast path", 2), loaded_mp("redirect", 2)]
    return [*paths, loaded_mp("conntrack", 2)]
