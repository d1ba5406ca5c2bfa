"""Whether this machine can do what a start needs, and what to do where it cannot.

Queues and rules are really tried: in a network namespace of their own that ends with the trial.
"""

import ctypes
import multiprocessing
import os
import pwd
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loaded_mp.config.model import Config
from loaded_mp.datapath.queue import Queue, QueueError
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.memory.arena import why_no_arenas
from loaded_mp.memory.shared import memory_bytes
from loaded_mp.network import iptables, sysctls
from loaded_mp.network.changes import AddChain
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.host import Host, Link
from loaded_mp.network.queues import read_queues
from loaded_mp.network.tracking import FULL_PERCENT, more_room, read_tracked
from loaded_mp.plan import no_fast_path, plan
from loaded_mp.services import queues_of, services_of, worker_count

_PROC = Path("/proc")
#: The limit of a container (cgroup v2).
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: NFQA_CFG_F_GSO, without which long packets arrive in pieces.
_OLDEST_KERNEL = (3, 10)
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
#: include/uapi/linux/capability.h: bit and what it is needed for.
_CAPABILITIES = {
    "CAP_NET_ADMIN": (12, "rules, addresses, verdicts"),
    "CAP_SETUID": (7, "workers become another user"),
    "CAP_SETGID": (6, "workers become another user"),
    "CAP_SYS_CHROOT": (18, "workers lock themselves in"),
    "CAP_KILL": (5, "ending workers, which are another user"),
}
#: What the fast path takes besides.
_OF_PROGRAMS = {"CAP_BPF": 39, "CAP_PERFMON": 38}
#: Descriptors that checks, workers and connections to the daemon take together.
_DESCRIPTORS = 512
_TRIAL_TIMEOUT_S = 120
_COMMAND_TIMEOUT_S = 30
_MIB = 1 << 20
_SAMPLE = Config.model_validate(
    {
        "services": [
            {
                "name": "trial",
                "vips": ["192.0.2.1", "2001:db8::1"],
                "backends": [{"address": "10.0.0.1"}, {"address": "fd00::1"}],
            }
        ]
    }
)


@dataclass(frozen=True)
class Finding:
    """One thing there is to say about this machine."""

    level: Literal["ok", "warning", "fail"]
    what: str
    text: str
    todo: str = ""  #: what to do about it


def findings(config: Config | None) -> Iterator[Finding]:
    """Everything there is to say about this machine, about any configuration or a given one."""
    wanted = config or _SAMPLE
    yield _kernel()
    capable = _capabilities()
    yield capable
    yield _user(wanted.user)
    yield from _iptables()
    yield _queue_numbers(wanted)
    if capable.level == "ok":
        yield from _tried(wanted)
    else:
        yield Finding("warning", "trial", "queues and rules were not tried", "run this command as root")
    yield from _forwarding()
    yield from _reverse_path()
    yield from _connections()
    yield _fast_path(config)
    yield _memory(wanted)
    yield _descriptors()
    if config:
        yield from _interfaces(config)


def _verdict(fine: bool, what: str, text: str, todo: str) -> Finding:
    return Finding("ok", what, text) if fine else Finding("fail", what, text, todo)


def _kernel() -> Finding:
    release = os.uname().release
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    oldest = ".".join(str(number) for number in _OLDEST_KERNEL)
    return _verdict(
        version >= _OLDEST_KERNEL, "kernel", f"Linux {release}", f"install Linux {oldest} or a later one"
    )


def _capabilities() -> Finding:
    held = _held()
    missing = [f"{name} ({reason})" for name, (bit, reason) in _CAPABILITIES.items() if not held >> bit & 1]
    return _verdict(
        not missing,
        "capabilities",
        f"missing: {', '.join(missing)}" if missing else "all that are needed",
        "run as root; in a container, add them (cap_add)",
    )


def _held() -> int:
    """The effective capabilities, a bit each (proc_pid_status(5))."""
    status = (_PROC / "self/status").read_text()
    return int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)


def _fast_path(config: Config | None) -> Finding:
    if config and (why_not := no_fast_path(config)):
        return Finding("ok", "fast path", f"none: {why_not}")
    held, without = _held(), "leave it: workers see all packets, which is only slower"
    if missing := [name for name, bit in _OF_PROGRAMS.items() if not held >> bit & 1]:
        text = f"missing: {', '.join(missing)}"
        return Finding("warning", "fast path", text, f"give it to the daemon, or {without}")
    if why_not := why_no_arenas():
        return Finding("warning", "fast path", why_not, without)
    return Finding("ok", "fast path", "the kernel gives programs memory")


def _user(name: str) -> Finding:
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        return Finding("fail", "user", f"there is no user {name!r}", "make it, or set `user` to another one")
    return Finding("ok", "user", f"workers run as {name} ({account.pw_uid})")


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )


def _iptables() -> Iterator[Finding]:
    for tool in ("iptables", "ip6tables"):
        command = iptables.command_name(tool, iptables.variant())
        try:
            done = _run([command, "--version"])
        except FileNotFoundError:
            yield Finding("fail", tool, f"there is no command {command}", "install the package iptables")
            continue
        yield _verdict(
            done.returncode == 0,
            tool,
            (done.stdout or done.stderr).strip(),
            f"`{command} --version` has to work: install the package iptables again",
        )


def _queue_numbers(config: Config) -> Finding:
    queues = queues_of(config)
    numbers = f"{queues[0]}-{queues[-1]}" if len(queues) > 1 else f"{queues[0]}"
    if queues[-1] > 0xFFFF:
        return Finding("fail", "queues", f"there are no queues {numbers}", "choose a lower first_queue")
    taken = {number: each.port for number, each in read_queues(_PROC).items() if number in queues}
    if not taken:
        return Finding("ok", "queues", f"{numbers} free")
    number, port = min(taken.items())
    try:
        holder = (_PROC / str(port) / "comm").read_text().strip()
    except OSError:  # the kernel names who bound it; others may have it by now
        text = f"{numbers} in use: loaded-mp runs already, or its workers do without a daemon"
        return Finding("warning", "queues", text, "see `loaded-mp status`; a start takes workers over")
    if holder.startswith("loaded-mp"):
        return Finding("warning", "queues", f"{numbers} in use: loaded-mp runs already ({port})")
    todo = "stop it, or choose another first_queue"
    return Finding("fail", "queues", f"{number} is in use by {holder} ({port})", todo)


def _tried(config: Config) -> list[Finding]:
    """Bind a queue and put the rules in place, where that touches nothing."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_trial, config).result(_TRIAL_TIMEOUT_S)


def _trial(config: Config) -> list[Finding]:
    """To be run in a process of its own.

    Where no namespace can be made (it takes CAP_SYS_ADMIN), a free queue is bound for a moment and the rules
    are only tested.
    """
    alone = ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
    number = next(number for number in range(config.first_queue, 1 << 16) if number not in read_queues(_PROC))
    return [_queue(number, config.queue_length), *_rules(config, iptables.apply if alone else _test)]


def _queue(number: int, length: int) -> Finding:
    try:
        Queue(number, length).close()
    except QueueError as error:
        todo = "load the module nfnetlink_queue, or install a kernel that has it"
        return Finding("fail", "NFQUEUE", str(error), todo)
    return Finding("ok", "NFQUEUE", f"a queue for {length:,} packets was bound")


def _test(chain: AddChain) -> None:
    done = _run([f"{chain.tool}-restore", "--noflush", "--test"], chain.text(jump=True))
    if done.returncode:
        raise NetworkError(" ".join(done.stderr.split()))


def _rules(config: Config, attempt: Callable[[AddChain], None]) -> Iterator[Finding]:
    names = config.network.public_interface, config.network.private_interface
    links = {name: Link(True, 1500) for name in names if name}
    host = Host(links, (), (), sysctls.read_sysctls(), iptables=iptables.variant())
    changes = plan(services_of(config), host).changes
    chains = [change for change in changes if isinstance(change, AddChain)]
    for family in sorted({chain.family for chain in chains}):
        tables = [chain for chain in chains if chain.family == family]
        what = f"rules IPv{family}"
        try:
            for chain in tables:
                attempt(chain)
        except NetworkError as error:
            wanted = (f'for forwarding = "{name}": {each.needs}' for name, each in FORWARDINGS.items())
            yield Finding("fail", what, str(error), f"the kernel needs {'; '.join(wanted)}")
        else:
            verb = "stood" if attempt is iptables.apply else "were tested"
            where = ", ".join(dict.fromkeys(chain.table for chain in tables))
            yield Finding("ok", what, f"{verb} in the tables {where}")


def _forwarding() -> Iterator[Finding]:
    for what, name in (("IPv4", "ipv4/ip_forward"), ("IPv6", "ipv6/conf/all/forwarding")):
        setting = _PROC / "sys/net" / name
        title = f"forwarding {what}"
        if not setting.exists():
            yield Finding(
                "warning", title, f"the kernel has no {what}", f"do without {what}, or switch it on"
            )
        elif setting.read_text().strip() == "1":
            yield Finding("ok", title, "on")
        elif not os.statvfs(setting).f_flag & os.ST_RDONLY:
            yield Finding("ok", title, "off; a start switches it on")
        else:
            key = f"net.{name.replace('/', '.')}"
            yield Finding("fail", title, "off, and may not be changed from here", f"set {key}=1 from outside")


def _reverse_path() -> Iterator[Finding]:
    """Strict reverse path filters drop what comes in on another interface than the answer leaves by."""
    folder = _PROC / "sys/net/ipv4/conf"
    values = {path.parent.name: int(path.read_text()) for path in folder.glob("*/rp_filter")}
    strict = [name for name in sorted(values) if name != "lo" and max(values[name], values["all"]) == 1]
    strict = [name for name in strict if name not in ("all", "default")]
    text = f"strict on {', '.join(strict)}: fine as long as answers leave by the interface that questions use"
    yield Finding("ok", "rp_filter", text if strict else "not strict")


def _connections() -> Iterator[Finding]:
    """The kernel drops packets of new connections while its table is full."""
    tracked = read_tracked(_PROC)
    if tracked is None:  # the trial tells
        return
    text = f"{tracked.connections:,} of {tracked.limit:,} connections tracked"
    if tracked.percent < FULL_PERCENT:
        yield Finding("ok", "conntrack", text)
    else:
        yield Finding("warning", "conntrack", text, more_room(tracked))


def _memory(config: Config) -> Finding:
    needed = memory_bytes(config.flows, worker_count(config))
    available = int(re.findall(r"MemAvailable:\s*(\d+)", (_PROC / "meminfo").read_text())[0]) << 10
    if _CGROUP_LIMIT.exists() and (limit := _CGROUP_LIMIT.read_text().strip()).isdecimal():
        available = min(available, int(limit))
    return _verdict(
        needed < available,
        "memory",
        f"{needed // _MIB:,} MiB for {config.flows:,} flows, {available // _MIB:,} MiB available",
        "choose a smaller number of flows",
    )


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} open files allowed"
    if soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS:
        return Finding("ok", "ulimit", "any number of open files allowed" if soft < 0 else text)
    return Finding("warning", "ulimit", text, f"allow {_DESCRIPTORS} or more (ulimit -n, LimitNOFILE=)")


def _interfaces(config: Config) -> Iterator[Finding]:
    present = sorted(path.name for path in (_PROC / "sys/net/ipv4/conf").iterdir())
    present = [name for name in present if name not in ("all", "default")]
    for key in ("public_interface", "private_interface"):
        name = getattr(config.network, key)
        if name is None:
            continue
        yield _verdict(
            name in present,
            key,
            name if name in present else f"this machine has no interface {name}",
            f"set network.{key} to one of: {', '.join(present)}",
        )
