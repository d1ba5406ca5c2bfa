"""How many checks one core carries, and how many are on time: `python tests/bench/checks.py --out FOLDER`.

The targets are addresses of one namespace beyond a veth pair, with nginx and an echo of datagrams in it. The
runner is the daemon's own, in a process of its own, pinned to one core; the servers have another one. Then
all is measured once more, while a daemon forwards what it can on the servers' core.
"""

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from loaded_mp.checks.check import Check
from loaded_mp.checks.http import HttpCheck, HttpsCheck
from loaded_mp.checks.icmp import IcmpCheck
from loaded_mp.checks.runner import Result, Runner, Target
from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.checks.udp import UdpCheck
from loaded_mp.fields import Endpoint
from loaded_mp.lab.interrupt import interrupt_on_signals
from loaded_mp.lab.lab import VIP4, Lab, Options
from loaded_mp.lab.namespace import Namespace, connect, new_prefix, remove_leftovers
from loaded_mp.lab.wait import wait_until

#: Until every target was asked once.
_WARM_UP = 1.5
_ON_TIME = 0.1  #: of the interval
_FULL_PACKETS = 10_000  #: that a daemon has forwarded when its traffic is under way
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

_NGINX = """
daemon off; master_process off; error_log stderr crit; pid {folder}/pid; worker_rlimit_nofile 40000;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 80 backlog=4096; listen 443 ssl backlog=4096;
    ssl_certificate {folder}/crt; ssl_certificate_key {folder}/key;
    location / {{ return 200 "well\\n"; }}
  }}
}}
"""
_ECHO = """
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
echo.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: answer from the address that was asked
echo.bind(("", 7))
while True:
    data, about, _, client = echo.recvmsg(100, 100)
    echo.sendmsg([data], about, 0, client)
"""


def kinds(interval_s: float) -> dict[str, Check]:
    """What is measured."""
    settings = {"interval_s": interval_s}
    return {
        "TCP connect": TcpCheck.model_validate({"port": 80, **settings}),
        "HTTP": HttpCheck.model_validate(settings),
        "HTTPS": HttpsCheck.model_validate(settings),
        "ICMP echo": IcmpCheck.model_validate(settings),
        "UDP": UdpCheck.model_validate({"port": 7, "send": "x", **settings}),
    }


@contextlib.contextmanager
def network() -> Iterator[Namespace]:
    """A namespace from which all targets are reached."""
    remove_leftovers()
    prefix = new_prefix()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
        balancer, targets = Namespace(f"{prefix}balancer"), Namespace(f"{prefix}targets")
        for namespace in (balancer, targets):
            stack.callback(namespace.remove)
        connect(balancer, "eth0", targets, "eth0")
        balancer.ip("address add 10.0.0.254/24 dev eth0", "route add 10.1.0.0/16 via 10.0.0.1")
        targets.ip("address add 10.0.0.1/24 dev eth0", "route add local 10.1.0.0/16 dev lo")
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=target"
            f" -keyout {folder}/key -out {folder}/crt".split(),
            check=True,
            capture_output=True,
        )
        Path(folder, "nginx.conf").write_text(_NGINX.format(folder=folder))
        core = ("taskset", "-c", str(max(os.sched_getaffinity(0))))
        targets.start(*core, "nginx", "-e", "stderr", "-c", f"{folder}/nginx.conf")
        targets.start(*core, sys.executable, "-c", _ECHO)
        wait_until(lambda: targets.run("ss", "-Hln", "sport", "443").stdout, "targets answer")
        yield balancer


def measure(namespace: str, check: Check, number: int, seconds: float) -> dict[str, Any]:
    """Ask `number` targets; to be called in a process of its own, which it takes into the namespace."""
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None).setns(file.fileno(), _CLONE_NEWNET):
            raise RuntimeError(f"cannot enter {namespace}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    first = int(ip_address("10.1.0.1"))
    targets = [
        Target(each, Endpoint(ip_address(first + each), check.port_of(None, None)), check)
        for each in range(number)
    ]
    results: list[Result] = []

    async def run() -> tuple[float, float]:
        runner = asyncio.create_task(Runner(targets, results.append).run())
        await asyncio.sleep(check.interval_s * _WARM_UP)
        results.clear()
        began_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began_s, time.process_time() - cpu_s
        runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await runner
        return took

    wall_s, cpu_s = asyncio.run(run())
    late = sorted(each.late_s for each in results)
    return {
        "checks": number,
        "per_second": len(results) / wall_s,
        "core": cpu_s / wall_s,
        "per_second_and_core": len(results) / cpu_s,
        "on_time": sum(each <= check.interval_s * _ON_TIME for each in late) / len(late),
        "late_p99_ms": late[len(late) * 99 // 100] * 1000,
        "faults": sum(each.finding.fault is not None for each in results),
    }


def in_a_process(namespace: str, check: Check, number: int, seconds: float) -> dict[str, Any]:
    """`measure`, and the process ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (namespace, check, number, seconds))


@contextlib.contextmanager
def full_traffic() -> Iterator[None]:
    """A daemon that forwards all that wrk asks for, both on the targets' core."""
    core = max(os.sched_getaffinity(0))
    with Lab(Options(sources=4)) as lab:
        daemon = lab.daemon(f"first_core = {core}\nlast_core = {core}\n{lab.config(workers=1)}")
        words = ("taskset", "-c", str(core), "wrk", "-t", "1", "-c", "16", "-d", "1h", f"http://{VIP4}/")
        asking = lab.client.talk(*words)
        wait_until(lambda: daemon.status().workers[0].counters["packets"] > _FULL_PACKETS, "it forwards")
        yield
        asking.kill()
        daemon.stop()


@click.command()
@click.option("--checks", "number", default=10_000, show_default=True)
@click.option("--interval", "interval_s", default=2.0, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--only", multiple=True, help="Kinds, as they are called in the table.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where checks.json goes.")
def main(number: int, interval_s: float, seconds: float, only: tuple[str, ...], out: Path | None) -> None:
    """Measure each kind of check."""
    interrupt_on_signals()
    wanted = {name: check for name, check in kinds(interval_s).items() if not only or name in only}
    found: dict[str, dict[str, Any]] = {}
    with network() as balancer:

        def all_measured() -> Iterator[tuple[str, dict[str, Any]]]:
            for name, check in wanted.items():
                measured = in_a_process(balancer.name, check, number, seconds)
                print(name, json.dumps(measured), file=sys.stderr, flush=True)
                yield name, measured

        found = dict(all_measured())
        with full_traffic():
            for name, measured in all_measured():
                found[name]["on_time_beside_traffic"] = measured["on_time"]
    data = {"interval_s": interval_s, "seconds": seconds, "kinds": found}
    text = json.dumps(data, indent=1) + "\n"
    if out:
        (out / "checks.json").write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
