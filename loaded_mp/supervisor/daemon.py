"""The supervisor's life: start everything in order, react, stop everything in reverse order."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

from loaded_mp import worker
from loaded_mp.checks.runner import Result, Runner
from loaded_mp.compiled import has_machine_code
from loaded_mp.config.bounded import load_bounded
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config
from loaded_mp.control.commands import Commands
from loaded_mp.control.server import control_socket, serve_control
from loaded_mp.datapath.queue import Queue
from loaded_mp.datapath.slices import ask_for_short_slices
from loaded_mp.log import event, set_level
from loaded_mp.memory.shared import Stamp, fresh_memory, memory_bytes
from loaded_mp.metrics.server import serve_metrics
from loaded_mp.network import setup
from loaded_mp.network.errors import NetworkError
from loaded_mp.plan import kept, plan
from loaded_mp.services import TooLargeError, worker_count
from loaded_mp.status import Status
from loaded_mp.supervisor import systemd
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.children import Children
from loaded_mp.supervisor.drift import Drift
from loaded_mp.supervisor.handover import (
    Inherited,
    adopt,
    end,
    hand_on,
    inherited,
    leave,
    let_go,
    taken_from_orphans,
)
from loaded_mp.supervisor.machine_code import load_machine_code, watch_for_late_compilation
from loaded_mp.supervisor.orphans import end_orphans
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.report import Report
from loaded_mp.supervisor.state import Stops
from loaded_mp.supervisor.sweep import Count, Expire, Forget, Sweeper

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

#: An old worker that has not been heard of for so long hangs.
_STAMP_TIMEOUT_S = 2.0
#: Until the answer to a command has gone out.
_ANSWER_S = 0.2

#: Machine code that took longer did not come from the cache on disk.
_FROM_CACHE_S = 0.5


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
        self._gone: set[int] = set()  #: backends whose connections are to be forgotten
        self._children: Children | None = None
        self.accounting = Accounting()

    def _begin(self, handed: Inherited | None) -> None:
        """Make what workers share, or go on with what another supervisor has left."""
        config = self.config
        self._adopted = adopt(handed, config) if handed else None
        if self._adopted:
            self.memory, self._memory_descriptor = self._adopted.memory, self._adopted.descriptor
        else:
            self.memory, self._memory_descriptor = fresh_memory(config.flows, worker_count(config))
        self.publisher = Publisher(self.memory, self._running)
        self.backends = Backends(self.memory, config, self._adopted)
        self.flows = Count(self.memory)
        self.sweeper = Sweeper(self.memory.table, Expire(self.memory), self.flows)
        self.drift = Drift()
        self.checks = Runner(self.backends.targets(), self._heard)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        config = self.config
        memory_mib = memory_bytes(config.flows, worker_count(config)) / (1 << 20)
        log.info(
            event(
                "starting", workers=worker_count(config), flows=config.flows, memory_mib=f"{memory_mib:.0f}"
            )
        )
        # A reload that is asked for too early waits; SIGHUP would end the process else.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload.set)
        async with contextlib.AsyncExitStack() as stack:
            control = stack.enter_context(control_socket())
            handed = inherited() or taken_from_orphans()
            self._begin(handed)
            if not self._adopted:
                _clear_up(handed)
            queues = self._open_queues(stack)
            try:
                async with asyncio.timeout(_STAMP_TIMEOUT_S):
                    await self.publisher.publish(self.backends.fill)
            except TimeoutError:  # an old worker hangs: it is ended below, and then this is made up for
                self._changed.set()
            self.backends.note()
            self._load_machine_code()
            children = await self._start_workers(stack, queues)
            if self._network_setup:
                self._set_up_network()
                stack.callback(setup.take_down)
            stack.push_async_callback(self._say_goodbye)
            await self._answer(stack, control, children)
            await self._work(children)
        log.info(event("stopped"))

    async def _say_goodbye(self) -> None:
        """Tell both ends of TCP connections that they are over, before the rules go.

        A client that is the only one to speak is told when it repeats itself.
        """
        for stops in (Stops.ENDING, Stops.ENDED):
            self.backends.stop(stops)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STAMP_TIMEOUT_S):
                    await self.publisher.publish(self.backends.fill)
            await asyncio.sleep(self.config.goodbye_s / 2)

    def _open_queues(self, stack: contextlib.AsyncExitStack) -> list[Queue]:
        queues = []
        for number in self.backends.services.queues:
            if self._adopted:
                queues.append(Queue.inherited(number, self._adopted.queues[number]))
            else:
                queues.append(Queue(number, self.config.queue_length))
            stack.callback(queues[-1].close)
        return queues

    def _load_machine_code(self) -> None:
        if not has_machine_code():
            log.info(event("compiling", cause="first start of this version", takes="up to a minute"))
        load_machine_code(self.memory, _say_step)
        watch_for_late_compilation()

    async def _start_workers(self, stack: contextlib.AsyncExitStack, queues: list[Queue]) -> Children:
        worker.warn_of_shared(self.config.user)
        places = [
            worker.Place(
                number, queue.number, queue.descriptor, self._memory_descriptor, core, self.config.user
            )
            for number, (queue, core) in enumerate(zip(queues, cores_of(self.config), strict=True))
        ]
        self._children = children = Children(places, partial(worker.run, self.memory), self._heartbeat_s)
        self._handle_signals(children)
        try:
            ask_for_short_slices()
        except OSError as error:
            log.warning(event("slices-refused", cause=str(error), effect="packets may wait for a core"))
        stack.push_async_callback(children.stop)
        if self._adopted:
            log.info(event("handed-over", workers=len(self._adopted.workers)))
            for pid in self._adopted.workers:
                end(pid)
        await children.start(taking_over=self._adopted is not None)
        return children

    def _running(self) -> list[int]:
        if self._children:
            return self._children.running()
        return list(range(worker_count(self.config))) if self._adopted else []

    def _heartbeat_s(self, number: int) -> float:
        return float(self.memory.stamps[number, Stamp.HEARTBEAT_MS]) / 1000

    def _handle_signals(self, children: Children) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGCHLD, children.reap)

    def _set_up_network(self) -> None:
        host = setup.read_host()
        changes = plan(self.backends.services, host).changes
        if not (self._adopted and setup.stands(changes)):
            setup.change(changes)
        self.drift.wanted = kept(self.backends.services, host)

    async def _answer(
        self, stack: contextlib.AsyncExitStack, control: socket.socket, children: Children
    ) -> None:
        """Answer commands and scrapes as long as the stack lasts."""
        self._report = Report(
            self.memory,
            self.backends,
            children,
            self.flows,
            self.publisher,
            self.accounting,
            self.drift,
        )
        await stack.enter_async_context(serve_control(control, Commands(self)))
        if self.config.metrics_listen:
            await stack.enter_async_context(serve_metrics(self.config.metrics_listen, self.status))

    async def _work(self, children: Children) -> None:
        """Do everything that goes on until the daemon is to stop."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work)
                for work in (
                    children.watch(),
                    self.sweeper.run(),
                    self.checks.run(),
                    self.drift.run(),
                    systemd.feed_watchdog(),
                    self._publish_changes(),
                    self._reloads(),
                )
            ]
            systemd.tell("READY=1")
            log.info(event("ready", workers=worker_count(self.config), services=len(self.config.services)))
            await self._stop.wait()
            if await systemd.is_restarting():
                self.backends.note()
                leave()
            systemd.tell_stopping(self.config.goodbye_s + worker.DRAIN_S)
            log.info(event("stopping"))
            for task in running:
                task.cancel()

    def _heard(self, result: Result) -> None:
        """Take note of what a check found."""
        if not self.backends.heard(result):
            return
        up = self.backends.states[result.backend].up
        service, backend = self.backends.name(result.backend)
        log.warning(
            event("backend-up" if up else "backend-down", service=service, backend=backend, cause=result.text)
        )
        if not up:
            self._gone.add(result.backend)
        self._changed.set()

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.publisher.publish(self.backends.fill)
            self.backends.note()
            await self._forget_connections()

    async def _forget_connections(self) -> None:
        """Let go of the connections to backends that went down or were removed."""
        if not self._gone:
            return
        await self.publisher.stamped()
        while self._gone:
            try:
                self.backends.forget_connections(self._gone.pop())
            except NetworkError as error:
                log.error(event("connections-kept", cause=str(error)))

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await self.reload()

    def status(self) -> Status:
        """What the daemon says of itself, once it runs."""
        return self._report.status()

    async def reload(self) -> list[str]:
        """Take over a changed configuration; what is wrong with it, or nothing. Then the old one stays."""
        async with self._reloading:
            return await self._reload_now()

    async def _reload_now(self) -> list[str]:
        try:
            config = await load_bounded(self._load)
        except ConfigError as error:
            return _refused([str(mistake) for mistake in error.mistakes])
        except OSError as error:
            return _refused([f"no process to read the configuration with: {error.strerror}"])
        fixed = {key: getattr(self.config, key) for key in _FIXED}
        changed = [key for key in _FIXED if getattr(config, key) != fixed[key]]
        if changed:
            log.warning(event("restart-needed", keys=",".join(changed), effect="these keep their values"))
        config = config.model_copy(update=fixed)
        if config == self.config:
            log.info(event("reloaded", changed="nothing"))
            return []
        try:
            await self._run_with(config)
        except (TooLargeError, NetworkError) as error:
            return _refused([str(error)])
        self.config = config
        set_level(config.log_level)
        self.checks.update(self.backends.targets())
        log.info(event("reloaded", services=len(config.services), generation=self.publisher.generation))
        await self._release_removed()
        self.backends.note()
        return []

    async def restart(self) -> list[str]:
        """Become the program anew, as its files are now, while workers go on; what keeps it from that."""
        try:
            await load_bounded(self._load)
        except ConfigError as error:
            return [str(mistake) for mistake in error.mistakes]
        except OSError as error:
            return [f"no process to read the configuration with: {error.strerror}"]
        assert self._children
        self.backends.note()
        handed = Inherited(
            memory=self._memory_descriptor,
            queues={child.place.queue: child.place.descriptor for child in self._children.children},
            workers=[child.pid for child in self._children.children if child.pid],
        )
        log.info(event("restarting"))
        asyncio.get_running_loop().call_later(_ANSWER_S, hand_on, handed)
        return []

    async def _run_with(self, config: Config) -> None:
        """Take over a configuration. Raises TooLargeError or NetworkError; then all is as it was."""
        before = self.backends.services
        self.backends.configure(config)
        try:
            if self._network_setup:
                host = setup.read_host()
                changes = plan(self.backends.services, host).changes
            await self.publisher.publish(self.backends.fill)
            if self._network_setup:
                # Rules that are put again count from 0: seen before and right after, nothing of it is lost.
                async with self.drift.lock:
                    self.accounting.read(before)
                    setup.change(changes)
                    self.drift.wanted = kept(self.backends.services, host)
                    self.accounting.read(self.backends.services)
        except NetworkError:
            self.backends.configure(before.config)
            await self.publisher.publish(self.backends.fill)
            raise

    async def _release_removed(self) -> None:
        removed = self.backends.removed()
        if removed:
            await self.publisher.stamped()
            self._gone.update(self.backends.states.keys() & set(removed))
            await self._forget_connections()
            await self.sweeper.once(Forget(self.memory.table, removed))
        for value in removed:
            self.accounting.forget(value)
            self.backends.release(value)
        self.backends.release_services()


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


def _clear_up(handed: Inherited | None) -> None:
    """Take away what another daemon has left."""
    if handed:
        let_go(handed)
    if orphans := end_orphans():
        log.warning(event("orphans-ended", workers=orphans))
    if setup.left_over():
        log.warning(event("leftovers-removed"))
        setup.take_down()


def _say_step(name: str, seconds: float) -> None:
    compiled = seconds > _FROM_CACHE_S
    log.log(logging.INFO if compiled else logging.DEBUG, event("machine-code", part=name, s=f"{seconds:.2f}"))


def _refused(mistakes: list[str]) -> list[str]:
    for mistake in mistakes:
        log.error(event("reload-refused", mistake=mistake, effect="the old configuration stays"))
    return mistakes
