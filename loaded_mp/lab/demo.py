"""The demo: the main job on real traffic, step by step, in a lab of its own."""

import concurrent.futures
import hashlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, in_url
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import Explanation

WEIGHTS = (3, 2, 1)
WORKERS = 4
_DISCOVERY = "[service.discovery]\ninterval_s = 0.5\nfall = 2\n"
_BIG_MIB = 100
_REQUESTS = 5
_TOLERANCE = 1  #: sources that a backend may be away from its exact share


class StepError(Exception):
    """A step did not show what it should; the message says what was seen instead."""


@dataclass
class Step:
    """One thing that the demo shows."""

    title: str
    outcome: str = ""  #: what was measured
    passed: bool | None = None  #: None: not done yet
    began_s: float = field(default_factory=time.monotonic)


@dataclass
class Demo:
    """What the screen shows: the steps so far, and the lab and daemon once they stand."""

    steps: list[Step] = field(default_factory=list)
    lab: Lab | None = None
    daemon: Daemon | None = None
    sysctls: str = ""  #: of the balancer, before the daemon was started
    changed: Callable[[], None] = lambda: None  #: called when a step begins or ends

    def run(self, title: str, work: Callable[[], str]) -> None:
        """Do one step; what goes wrong is its outcome, and the demo goes on."""
        step = Step(title)
        self.steps.append(step)
        self.changed()
        try:
            step.outcome = work()
            step.passed = True
        except (StepError, RuntimeError, TimeoutError, OSError) as error:
            step.outcome = str(error).strip()
            step.passed = False
        self.changed()


@contextmanager
def standing(demo: Demo) -> Iterator[None]:
    """Build the network and start the daemon; both are there as long as the context lasts."""
    lab = Lab()

    def build() -> str:
        lab.__enter__()
        demo.lab = lab
        demo.sysctls = _sysctls(lab)
        return (
            f"{len(lab.sources4)} client addresses of each family, 1 balancer, {len(lab.backends)} backends"
            " with nginx and DNS"
        )

    def start() -> str:
        started = time.monotonic()
        demo.daemon = lab.daemon(lab.config(WEIGHTS, workers=WORKERS) + _DISCOVERY)
        return f"ready after {time.monotonic() - started:.1f} s"

    try:
        demo.run("build a network in namespaces, IPv4 and IPv6", build)
        if demo.lab:
            demo.run(
                f"start loaded-mp --workers {WORKERS} (the first start ever compiles for a while)", start
            )
        yield
    finally:
        if demo.lab:
            lab.__exit__(None, None, None)


def traffic(demo: Demo) -> None:
    """All steps between start and stop."""
    if not (demo.lab and demo.daemon):
        return
    lab, daemon = demo.lab, demo.daemon
    demo.run("ping both VIPs", lambda: _ping(lab))
    homes: dict[str, str] = {}
    for vip in VIPS:
        title = f"{_REQUESTS} web pages for each of {len(lab.sources(vip))} clients of {vip}"
        demo.run(title, partial(_web, lab, vip, homes))
    demo.run("curl, wget and dig", lambda: _tools(lab))
    demo.run("DNS over UDP from the same clients", lambda: _dns(lab, homes))
    demo.run(f"download {_BIG_MIB} MiB over each family", lambda: _download(lab))
    demo.run("take backend2 away", lambda: _backend_away(lab, daemon, homes))
    demo.run("let backend2 come back", lambda: _backend_back(lab, daemon))
    demo.run("switch on a machine that nobody has configured, and off again", lambda: _discover(lab, daemon))
    demo.run("loaded-mp explain: where clients go, and whether they do", lambda: _explain(lab))
    demo.run("loaded-mp drain backend1", lambda: _drain(lab))
    demo.run("kill -9 each worker under load", lambda: _kill_workers(lab, daemon))


def stop(demo: Demo) -> None:
    """The last step: what the daemon changed on its host is taken back."""
    if not (demo.lab and demo.daemon):
        return
    lab, daemon = demo.lab, demo.daemon

    def work() -> str:
        started = time.monotonic()
        daemon.stop()
        took = time.monotonic() - started
        if _sysctls(lab) != demo.sysctls:
            raise StepError("sysctls are not what they were")
        left = [line for line in lab.balancer.run("iptables-save").stdout.splitlines() if "LOADED" in line]
        addresses = lab.balancer.run("ip", "address").stdout
        if left or any(vip in addresses for vip in VIPS):
            raise StepError(f"left behind: {left or addresses}")
        return f"after {took:.1f} s; its rules and addresses are gone, sysctls as before"

    demo.run("stop the daemon", work)


def _sysctls(lab: Lab) -> str:
    return lab.balancer.run("sysctl", "net.ipv4.conf", "net.ipv4.ip_forward", "net.ipv6.conf").stdout


def _ping(lab: Lab) -> str:
    times = []
    for vip in VIPS:
        answer = lab.client.run("ping", "-c", "5", "-i", "0.1", vip).stdout
        mean = answer.rpartition(" = ")[2].split("/")[1]
        times.append(f"{vip} {mean} ms")
    return ", ".join(times)


def _no_errors(answers: dict[str, list[str]]) -> None:
    errors = [name for names in answers.values() for name in names if name.startswith("error")]
    if errors:
        raise StepError(f"{len(errors)} requests failed, the first with {errors[0]}")


def _web(lab: Lab, vip: str, homes: dict[str, str]) -> str:
    answers = lab.answers("http", vip, _REQUESTS, lab.sources(vip))
    _no_errors(answers)
    moved = [source for source, names in answers.items() if len(set(names)) > 1]
    if moved:
        raise StepError(f"{len(moved)} clients did not stay with their backend")
    homes.update((source, names[0]) for source, names in answers.items())
    spread = Counter(names[0] for names in answers.values())
    for backend, weight in zip(lab.backends, WEIGHTS, strict=True):
        if abs(spread[backend.name] - len(answers) * weight / sum(WEIGHTS)) > _TOLERANCE:
            raise StepError(f"spread {dict(spread)}, expected {WEIGHTS}")
    shares = " : ".join(str(spread[backend.name]) for backend in lab.backends)
    return f"clients {shares} by weights {' : '.join(map(str, WEIGHTS))}; each stayed with its backend"


def _tools(lab: Lab) -> str:
    for vip in VIPS:
        name = lab.client.run("curl", "-sg", f"http://{in_url(vip)}/").stdout.strip()
        others = (
            lab.client.run("wget", "-qO-", f"http://{in_url(vip)}/").stdout.strip(),
            lab.client.run("dig", "+short", f"@{vip}", "who", "TXT").stdout.strip().strip('"'),
        )
        if set(others) != {name}:
            raise StepError(f"curl was served by {name}, wget and dig by {others}")
    return "the same backend answered all three, over IPv4 and IPv6"


def _dns(lab: Lab, homes: dict[str, str]) -> str:
    asked = 0
    for vip in VIPS:
        answers = lab.answers("dns", vip, 1, lab.sources(vip))
        _no_errors(answers)
        asked += len(answers)
        strayed = [source for source, names in answers.items() if names[0] != homes.get(source)]
        if strayed:
            raise StepError(f"{len(strayed)} clients were served by another backend than over TCP")
    return f"{asked} answers, each from the backend that served the client over TCP"


def _download(lab: Lab) -> str:
    checksum = lab.big_file(_BIG_MIB)
    rates = []
    for vip in VIPS:
        path = lab.folder / "download"
        started = time.monotonic()
        lab.client.run("curl", "-sgf", "-o", str(path), f"http://{in_url(vip)}/big", timeout_s=120)
        took = time.monotonic() - started
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise StepError(f"what came from {vip} has another checksum")
        path.unlink()
        rates.append(f"{vip} {_BIG_MIB * 1.048576 / took:,.0f} MB/s")
    return f"checksums right; {', '.join(rates)}"


def _states(lab: Lab, daemon: Daemon) -> set[bool]:
    backend = lab.backends[1]
    return {daemon.backends()[address].up for address in (backend.ipv4, backend.ipv6)}


def _backend_away(lab: Lab, daemon: Daemon, homes: dict[str, str]) -> str:
    started = time.monotonic()
    lab.backends[1].stop_web()
    wait_until(lambda: _states(lab, daemon) == {False}, "the check notices")
    noticed = time.monotonic() - started
    moved = 0
    for vip in VIPS:
        answers = lab.answers("http", vip, 1, lab.sources(vip))
        _no_errors(answers)
        for source, names in answers.items():
            if homes.get(source) == "backend2":
                moved += names[0] != "backend2"
            elif names[0] != homes.get(source):
                raise StepError(f"{source} moved although its backend is up")
    return f"noticed after {noticed:.1f} s; its {moved} clients moved, all others stayed; no request failed"


def _backend_back(lab: Lab, daemon: Daemon) -> str:
    started = time.monotonic()
    lab.backends[1].start_web()
    wait_until(lambda: _states(lab, daemon) == {True}, "the check notices")
    return f"up again after {time.monotonic() - started:.1f} s; new clients go there, nobody is torn away"


def _discover(lab: Lab, daemon: Daemon) -> str:
    backend = lab.another_backend()
    started = time.monotonic()
    addresses = {backend.ipv4, backend.ipv6}

    def up() -> set[str]:
        return {address for address, each in daemon.backends().items() if each.up and address in addresses}

    wait_until(lambda: up() == addresses, f"{backend.name} joins")
    joined_s = time.monotonic() - started
    started = time.monotonic()
    lab.cut_off(backend)
    wait_until(lambda: not addresses & daemon.backends().keys(), f"{backend.name} leaves")
    left_s = time.monotonic() - started
    return f"found in both families and serving after {joined_s:.1f} s, has left after {left_s:.1f} s"


def _explain(lab: Lab) -> str:
    for vip in VIPS:
        source = lab.sources(vip)[0]
        words = ("explain", source, vip, "--port", "80", "--json")
        said = Explanation.model_validate_json(lab.balancer.run(loaded_mp(), *words).stdout)
        (names,) = lab.answers("http", vip, _REQUESTS, [source]).values()
        if set(names) != {said.backend}:
            raise StepError(f"{source} was to go to {said.backend} ({said.why}), and went to {names}")
    return f"{said.source} goes to {said.backend}: {said.why}"


def _drain(lab: Lab) -> str:
    vip, name = VIPS[0], lab.backends[0].name
    new = [f"198.18.200.{number}" for number in range(1, 61)]
    lab.client.ip(*(f"address add {each}/16 dev eth0" for each in new))
    before = lab.answers("http", vip, 1, lab.sources(vip))
    lab.balancer.run(loaded_mp(), "drain", name)
    answers = lab.answers("http", vip, _REQUESTS, lab.sources(vip))
    came = lab.answers("http", vip, 1, new)
    lab.balancer.run(loaded_mp(), "ready", name)
    _no_errors(answers | came)
    if moved := [source for source, names in answers.items() if set(names) != set(before[source])]:
        raise StepError(f"{len(moved)} clients did not stay with their backend")
    if strayed := sum(names == [name] for names in came.values()):
        raise StepError(f"{strayed} new clients came to it")
    had = sum(names == [name] for names in before.values())
    return f"its {had} clients stayed with it, {len(new)} new ones went to the others; no request failed"


def _kill_workers(lab: Lab, daemon: Daemon) -> str:
    asked = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(WORKERS):
            asking = pool.submit(lab.answers, "http", VIPS[0], 10, lab.sources4)
            pid = daemon.status().workers[number].pid
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(_is_replaced, daemon, number, pid), "a new worker")
            answers = asking.result()
            _no_errors(answers)
            asked += sum(map(len, answers.values()))
    died = re.findall(r"time=\S+T(\S+)Z .*event=worker-died worker=(\d+)", daemon.log)
    started = re.findall(r"time=\S+T(\S+)Z .*event=worker-started worker=(\d+)", daemon.log)
    replaced_ms = [_milliseconds(b) - _milliseconds(a) for (a, _), (b, _) in zip(died, started, strict=False)]
    return f"{asked:,} requests meanwhile, none failed; replaced within {max(replaced_ms):.0f} ms"


def _is_replaced(daemon: Daemon, number: int, old: int) -> bool:
    return daemon.status().workers[number].pid not in (0, old)


def _milliseconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 1000 * (3600 * int(hours) + 60 * int(minutes) + float(seconds))
