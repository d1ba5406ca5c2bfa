"""The supervisor's life: start everything in order, react, stop everything in reverse order."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable

from loaded_mp.compiled import has_machine_code
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config
from loaded_mp.control.server import control_socket, serve_control, serve_metrics
from loaded_mp.datapath.queue import Queue
from loaded_mp.datapath.slices import ask_for_short_slices
from loaded_mp.health.checker import Checker, Transition
from loaded_mp.log import event, set_level
from loaded_mp.memory.shared import memory_bytes, new_shared_memory
from loaded_mp.memory.snapshot import MARK
from loaded_mp.network import host
from loaded_mp.network.conntrack import forget_connections
from loaded_mp.network.errors import NetworkError
from loaded_mp.status import Status
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.children import Children, end_orphans
from loaded_mp.supervisor.machine_code import load_machine_code
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.report import Report
from loaded_mp.supervisor.snapshots import TooLargeError, marks_of
from loaded_mp.supervisor.sweep import Sweeper

log = logging.getLogger(__name__)

#: What only a restart can change, as it sizes or places what runs already.
_FIXED = (
    "workers",
    "first_queue",
    "first_core",
    "last_core",
    "queue_length",
    "flows",
    "user",
    "metrics_listen",
)


#: Machine code that took longer did not come from the cache on disk.
_FROM_CACHE_S = 0.5


def worker_count(config: Config) -> int:
    """How many workers a configuration asks for; by default one for each core that we may use."""
    return config.workers or len(os.sched_getaffinity(0))


def cores_of(config: Config) -> list[int | None]:
    """The core of each worker, in turn from first_core to last_core; None where there is no such core."""
    workers = worker_count(config)
    if config.first_core is None:
        return [None] * workers
    last = config.last_core if config.last_core is not None else config.first_core + workers - 1
    wanted = [config.first_core + number % (last - config.first_core + 1) for number in range(workers)]
    available = os.sched_getaffinity(0)
    missing = sorted(set(wanted) - available)
    if missing:
        log.warning(event("cores-missing", cores=",".join(map(str, missing)), effect="not pinned there"))
    return [core if core in available else None for core in wanted]


def _say_step(name: str, seconds: float) -> None:
    compiled = seconds > _FROM_CACHE_S
    log.log(logging.INFO if compiled else logging.DEBUG, event("machine-code", part=name, s=f"{seconds:.2f}"))


def _tell_systemd(state: str) -> None:
    """sd_notify(3), for units of Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address.replace("@", "\0", 1))


class Daemon:
    """One supervisor with its workers. Raises what makes a start impossible, before anything was changed."""

    def __init__(self, config: Config, load: Callable[[], Config], network_setup: bool) -> None:
        """`load` reads the configuration again for a reload; it raises ConfigError."""
        self.config = config
        self._load = load
        self._network_setup = network_setup
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._changed = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._gone_down: set[int] = set()  #: backends whose connections are to be deleted
        workers = worker_count(config)
        self.memory = new_shared_memory(config.flows, workers)
        self.publisher = Publisher(self.memory)
        self.backends = Backends(self.memory, config)
        self.sweeper = Sweeper(self.memory.table)
        self.accounting = Accounting()
        self.checker = Checker(self.backends.checks(), self._checked)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        config, workers = self.config, worker_count(self.config)
        memory_mib = memory_bytes(config.flows, workers) / (1 << 20)
        log.info(event("starting", workers=workers, flows=config.flows, memory_mib=f"{memory_mib:.0f}"))
        async with contextlib.AsyncExitStack() as stack:
            control = stack.enter_context(control_socket())
            if orphans := end_orphans():
                log.warning(event("orphans-ended", workers=orphans))
            if host.left_over():
                log.warning(event("leftovers-removed"))
                host.take_down()
            queues = []
            for number in range(config.first_queue, config.first_queue + workers):
                queues.append(Queue(number, config.queue_length))
                stack.callback(queues[-1].close)
            await self.publisher.publish(self.backends.fill)
            if not has_machine_code():
                log.info(event("compiling", cause="first start of this version", takes="up to a minute"))
            load_machine_code(self.memory, _say_step)
            children = Children(self.memory, queues, cores_of(config), config.user)
            self._handle_signals(children)
            try:
                ask_for_short_slices()
            except OSError as error:
                log.warning(event("slices-refused", cause=str(error), effect="packets may wait for a core"))
            stack.push_async_callback(children.stop)
            await children.start()
            if self._network_setup:
                host.set_up(config, config.first_queue, workers, marks_of(self.backends.parts))
                stack.callback(host.take_down)
            report = Report(
                self.memory, self.backends, children, self.sweeper, self.publisher, self.accounting
            )

            def status() -> Status:
                return report.status(self.config)

            await stack.enter_async_context(serve_control(control, status, self.reload))
            if config.metrics_listen:
                await stack.enter_async_context(serve_metrics(config.metrics_listen, status))
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(work)
                    for work in (
                        children.watch(),
                        self.sweeper.run(),
                        self.checker.run(),
                        self._publish_changes(),
                        self._reloads(),
                    )
                ]
                _tell_systemd("READY=1")
                log.info(event("ready", workers=workers, services=len(config.services)))
                await self._stop.wait()
                _tell_systemd("STOPPING=1")
                log.info(event("stopping"))
                for task in running:
                    task.cancel()
        log.info(event("stopped"))

    def _handle_signals(self, children: Children) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        loop.add_signal_handler(signal.SIGCHLD, children.reap)

    def _checked(self, transition: Transition) -> None:
        self.backends.up[transition.backend] = transition.up
        service, backend = self.backends.name(transition.backend)
        log.warning(
            event(
                "backend-up" if transition.up else "backend-down",
                service=service,
                backend=backend,
                cause=transition.cause,
            )
        )
        if not transition.up and transition.backend in self.backends.translated():
            self._gone_down.add(transition.backend)
        self._changed.set()

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.publisher.publish(self.backends.fill)
            await self._forget_connections()

    async def _forget_connections(self) -> None:
        """Delete the connections that the kernel forwards to backends that went down or were removed."""
        if not self._gone_down:
            return
        await self.publisher.stamped()
        for number in self._gone_down:
            try:
                forget_connections(MARK + number)
            except NetworkError as error:
                log.error(event("connections-kept", cause=str(error)))
        self._gone_down.clear()

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await self.reload()

    async def reload(self) -> list[str]:
        """Take over a changed configuration; what is wrong with it, or nothing. Then the old one stays."""
        async with self._reloading:
            return await self._reload_now()

    async def _reload_now(self) -> list[str]:
        try:
            config = self._load()
        except ConfigError as error:
            return self._refused([str(mistake) for mistake in error.mistakes])
        fixed = {key: getattr(self.config, key) for key in _FIXED}
        changed = [key for key in _FIXED if getattr(config, key) != fixed[key]]
        if changed:
            log.warning(event("restart-needed", keys=",".join(changed), effect="these keep their values"))
        config = config.model_copy(update=fixed)
        translated = self.backends.translated()
        try:
            await self._run_with(config)
        except (TooLargeError, NetworkError) as error:
            await self._run_with(self.config)
            return self._refused([str(error)])
        self.config = config
        set_level(config.log_level)
        self.checker.update(self.backends.checks())
        log.info(event("reloaded", services=len(config.services), generation=self.publisher.generation))
        await self._release_removed(translated)
        return []

    async def _run_with(self, config: Config) -> None:
        before = self.backends.parts
        self.backends.configure(config)
        await self.publisher.publish(self.backends.fill)
        if self._network_setup:
            # Rules that are put again count from 0: seen before and right after, nothing of it is lost.
            self.accounting.read(before)
            host.change(config, config.first_queue, worker_count(config), marks_of(self.backends.parts))
            self.accounting.read(self.backends.parts)

    def _refused(self, mistakes: list[str]) -> list[str]:
        for mistake in mistakes:
            log.error(event("reload-refused", mistake=mistake, effect="the old configuration stays"))
        return mistakes

    async def _release_removed(self, translated: set[int]) -> None:
        """`translated`: the backends that the kernel forwarded to until now."""
        removed = self.backends.removed()
        if removed:
            await self.publisher.stamped()
        self._gone_down.update(translated & set(removed))
        await self._forget_connections()
        for value in removed:
            self.accounting.forget(value)
            await self.sweeper.forget(value)
            self.backends.release(value)
        self.backends.release_services()
