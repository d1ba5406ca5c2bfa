"""The supervisor's life: start everything in order, react, stop everything in reverse order."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loaded_mp import worker
from loaded_mp.bpf import arena_of
from loaded_mp.checks.runner import Result, Runner
from loaded_mp.config.model import Backend, Config
from loaded_mp.config.saving import Unsaved
from loaded_mp.control.commands import CommandError, Commands
from loaded_mp.control.server import control_socket, group_number, serve_control
from loaded_mp.discovery.finder import Finder
from loaded_mp.fastpath.loader import FastPath
from loaded_mp.fields import Address, Interface, Listener, Network
from loaded_mp.log import event
from loaded_mp.memory.shared import memory_bytes
from loaded_mp.metrics.server import metrics_sockets, serve_metrics
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.links import read_links
from loaded_mp.plan import no_fast_path
from loaded_mp.services import TooLargeError, with_workers, worker_count
from loaded_mp.status import (
    CheckStatus,
    Event,
    Explanation,
    FlowsStatus,
    Forecast,
    Outcome,
    ServiceStatus,
    Status,
    Wanted,
)
from loaded_mp.supervisor import systemd
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.affinities import Outlived
from loaded_mp.supervisor.aside import aside
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.changes import Changes
from loaded_mp.supervisor.children import Children
from loaded_mp.supervisor.drift import Drift
from loaded_mp.supervisor.events import Events
from loaded_mp.supervisor.explain import explain
from loaded_mp.supervisor.fullness import Fullness
from loaded_mp.supervisor.handover import (
    Inherited,
    adopt,
    end,
    hand_on,
    inherited,
    leave,
    taken_from_orphans,
)
from loaded_mp.supervisor.network_setup import NetworkSetup
from loaded_mp.supervisor.observation import Observation
from loaded_mp.supervisor.open_flows import OpenFlows
from loaded_mp.supervisor.own_schedulers import OwnSchedulers
from loaded_mp.supervisor.pool import Pool
from loaded_mp.supervisor.publisher import STAMP_TIMEOUT_S, Publisher
from loaded_mp.supervisor.rates import Rates
from loaded_mp.supervisor.reload import Load, RefusedError, Reload, read_again
from loaded_mp.supervisor.report import Report
from loaded_mp.supervisor.start import clear_up, memory_for, prepare_code, shorten_slices, why_not_in
from loaded_mp.supervisor.state import Change
from loaded_mp.supervisor.steering import Steering
from loaded_mp.supervisor.sweep import Count, Expire, Sweeper
from loaded_mp.supervisor.tracking import Tracking
from loaded_mp.supervisor.what_if import WhatIf

log = logging.getLogger(__name__)

#: Until the answer to a command has gone out.
_ANSWER_S = 0.2
_ATTACH_S = 1.0


class Daemon:
    """One supervisor with its workers. Raises what makes a start impossible, before anything was changed."""

    def __init__(self, config: Config, load: Load, network_setup: bool, file: Path | None = None) -> None:
        """`load` reads the configuration again for a reload; it raises ConfigError.

        `file`: the TOML file that it reads, absolute; None: it is another kind.
        """
        self._config = config  #: of the start
        self._load = load
        self._network_setup = network_setup
        self._file = file
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._children: Children | None = None
        self._events = Events()
        self._served = False
        self._taken_back = True

    def _begin(self, handed: Inherited | None) -> None:
        """Make what workers share, or go on with what another supervisor has left."""
        config = self._config
        self._adopted = adopt(handed, config) if handed else None
        if self._adopted:
            self.memory, self._memory_descriptor = self._adopted.memory, self._adopted.descriptor
            if (workers := len(self._adopted.queues)) != worker_count(config):
                self._config = config = with_workers(config, workers)
                self._hangup.set()  # the first reload brings it to what the configuration says
        else:
            self.memory, self._memory_descriptor, why_not = memory_for(config)
        if self._adopted:
            why_not = why_not_in(self._memory_descriptor, config)
        network = config.network
        interfaces = [each for each in (network.public_interface, network.private_interface) if each]
        links = self._adopted.links if self._adopted else ()
        self._in_kernel = arena_of(self._memory_descriptor) is not None
        self.fast_path = FastPath(interfaces, why_not, links, config.fast_path)
        self.pool = Pool(self.memory, self._memory_descriptor, config, self.fast_path)
        self._events.keep_in(self.memory)
        self.publisher = Publisher(
            self.memory, self._running, self.fast_path.grace if self._in_kernel else None
        )
        self.backends = Backends(self.memory, config, self._adopted)
        self.changes = Changes(self.backends, self.publisher)
        self.flows = Count(self.memory)
        outlived = Outlived(self.memory.table, self.backends.affinities, self.changes.tell)
        self.sweeper = Sweeper(self.memory.table, Expire(self.memory), self.flows, outlived)
        self.drift = Drift()
        self.accounting = Accounting()
        self.rates = Rates(self.memory, self.accounting)
        self.steering = Steering(self.backends, self.changes)
        self._open_flows = OpenFlows(self.memory, self.backends, self.steering, self.sweeper)
        self._own_schedulers = OwnSchedulers(self.memory, self.backends, self.rates, self.changes.tell)
        self._what_if = WhatIf(self.memory, self.backends, self.steering, self.sweeper, self._own_schedulers)
        self.network = NetworkSetup(self.drift, self.accounting, self._network_setup)
        self.checks = Runner(self.backends.targets(), self._heard)
        self.observation = Observation(self.memory, self.backends, self._observed_down)
        self._reload = Reload(
            self._load,
            self.memory,
            self.backends,
            self.publisher,
            self.changes,
            self.checks,
            self.sweeper,
            self.accounting,
            self.network,
            self.pool,
            self._own_schedulers,
        )
        self.finder = Finder(
            lambda: self.backends.services.config,
            self._reload,
            self.backends.fault,
            self.checks.attempt,
            _own_addresses,
        )

    async def run(self) -> bool:
        """Run until SIGTERM or SIGINT; whether this machine is then as it was."""
        logging.getLogger("loaded_mp").addHandler(self._events)
        try:
            return await self._run()
        finally:
            logging.getLogger("loaded_mp").removeHandler(self._events)

    async def _run(self) -> bool:
        config = self._config
        memory_mib = memory_bytes(config.flows, worker_count(config)) / (1 << 20)
        log.info(
            event(
                "starting", workers=worker_count(config), flows=config.flows, memory_mib=f"{memory_mib:.0f}"
            )
        )
        # A reload that is asked for too early waits; SIGHUP would end the process else.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hangup.set)
        async with contextlib.AsyncExitStack() as stack:
            control = stack.enter_context(control_socket(config.control_group))
            # Before anything is changed, as the port may be taken.
            scrapes = metrics_sockets(config.metrics_listen) if config.metrics_listen else []
            for each in scrapes:
                stack.callback(each.close)
            handed = inherited() or taken_from_orphans()
            self._begin(handed)
            if not self._adopted:
                await clear_up(handed)
            stack.callback(self.pool.close)
            await self._own_schedulers.first()
            self.pool.bind(self._config, self._adopted.queues if self._adopted else {})
            try:
                async with asyncio.timeout(STAMP_TIMEOUT_S):
                    await self.publisher.publish(self.backends.fill)
            except TimeoutError:  # an old worker hangs: it is ended below, and then this is made up for
                self.changes.tell()
            self.backends.note()
            prepare_code(self.memory)
            self.fast_path.start(self.memory, self._memory_descriptor)
            self._say_fast_path()
            stack.callback(self.fast_path.stop)
            children = await self._start_workers(stack)
            await self._unless_stopped(
                self.network.make(self.backends.services, taken_over=self._adopted is not None)
            )
            await self._answer(stack, control, scrapes, children)
            await self._work(children)
        log.info(event("stopped"))
        return self._taken_back

    def _say_fast_path(self) -> None:
        if self.fast_path.interfaces:
            log.info(
                event("fast-path", mode=self.fast_path.mode, interfaces=",".join(self.fast_path.interfaces))
            )
        if self.fast_path.why_not:
            effect = "workers see more packets" if self.fast_path.interfaces else "workers see all packets"
            log.info(event("no-fast-path", cause=self.fast_path.why_not, effect=effect))

    async def _keep_fast_path(self) -> None:
        """See the packets of interfaces that were made anew; begin once a reload gives it something to do."""
        nothing_to_do = no_fast_path(self._config)
        while True:
            await asyncio.sleep(_ATTACH_S)
            before = self.fast_path.interfaces, self.fast_path.why_not
            if nothing_to_do and self._in_kernel and not no_fast_path(self.backends.services.config):
                nothing_to_do = ""
                await aside(partial(self.fast_path.begin, self.memory, self._memory_descriptor))
            self.fast_path.attach(self.memory)
            if (self.fast_path.interfaces, self.fast_path.why_not) != before:
                self._say_fast_path()

    async def _start_workers(self, stack: contextlib.AsyncExitStack) -> Children:
        worker.warn_of_shared(self._config.user)
        self._children = children = self.pool.children
        self._handle_signals(children)
        shorten_slices()
        stack.push_async_callback(self._end, children)
        if self._adopted:
            log.info(event("handed-over", workers=len(self._adopted.workers)))
            for pid in self._adopted.workers:
                end(pid)
        await self.pool.start(self._config, taking_over=self._adopted is not None)
        return children

    def _running(self) -> list[int]:
        if self._children:
            return self._children.running()
        return list(range(len(self._adopted.queues))) if self._adopted else []

    def _handle_signals(self, children: Children) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGCHLD, children.reap)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it to its end, or until the daemon is to stop."""
        doing, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        doing.cancel()
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing

    async def _answer(
        self,
        stack: contextlib.AsyncExitStack,
        control: socket.socket,
        scrapes: list[socket.socket],
        children: Children,
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
            self.rates,
            self.fast_path,
        )
        await stack.enter_async_context(serve_control(control, Commands(self), self._config.control_group))
        if scrapes:
            await stack.enter_async_context(serve_metrics(scrapes, partial(self._report.status, None)))

    async def _work(self, children: Children) -> None:
        """Do everything that goes on until the daemon is to stop."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work)
                for work in (
                    children.watch(),
                    self.sweeper.run(),
                    self.checks.run(),
                    self.finder.run(),
                    self.observation.run(),
                    Fullness(self.backends).run(),
                    self.drift.run(),
                    self.accounting.run(lambda: self.backends.services),
                    self.changes.run(),
                    self.changes.rise(),
                    self._own_schedulers.run(),
                    self.backends.quorum.run(),
                    Tracking().run(),
                    self.rates.run(),
                    systemd.feed_watchdog(),
                    self._keep_fast_path(),
                    self._reloads(),
                )
            ]
            if not self._stop.is_set():
                self._served = True
                systemd.tell("READY=1")
                log.info(
                    event("ready", workers=worker_count(self._config), services=len(self._config.services))
                )
            await self._stop.wait()
            if await systemd.is_restarting():
                self.backends.note()
                leave()
            systemd.tell_stopping(self.backends.services.config.goodbye_s + worker.DRAIN_S)
            log.info(event("stopping"))
            for task in running:
                task.cancel()

    def _heard(self, result: Result) -> None:
        """Take note of what a check found."""
        change = self.backends.heard(result)
        if change is None:
            return
        service, backend = self.backends.name(result.backend)
        level = logging.WARNING if change is Change.DOWN else logging.INFO
        log.log(level, event(change, service=service, backend=backend, cause=result.text))
        usable = self.backends.states[result.backend].usable
        self.changes.tell(*(() if usable else (result.backend,)))

    def _observed_down(self, number: int, cause: str) -> None:
        """Take note of what workers saw of a backend, and ask it anew."""
        self.backends.states[number].observed(cause)
        service, backend = self.backends.name(number)
        log.warning(event(Change.DOWN, service=service, backend=backend, cause=cause))
        self.checks.hasten(number)
        self.changes.tell(number)

    async def _reloads(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            await self.reload()

    async def status(self, service: str | None = None) -> Status:
        """What the daemon says of itself, once it runs. Raises CommandError if there is no such service."""
        await self.changes.settled()
        self.steering.within(service)
        return self._report.status(service)

    async def want(self, wanted: Wanted, backend: str, service: str | None) -> list[ServiceStatus]:
        """Want this of a backend; what it is now. Raises CommandError if it is not clear which one."""
        return await self._steered(self.steering.want(wanted, backend, service))

    async def weigh(self, weight: int | None, backend: str, service: str | None) -> list[ServiceStatus]:
        """Give a backend another weight; None: the configured one. What it is now. Raises CommandError."""
        return await self._steered(self.steering.weigh(weight, backend, service))

    async def _steered(self, numbers: list[int]) -> list[ServiceStatus]:
        await self.changes.settled()
        return self._report.services(numbers)

    def checks_of(self, backend: str | None, service: str | None) -> list[CheckStatus]:
        """What checks found the last time. Raises CommandError."""
        return self.steering.checks(backend, service)

    async def open_flows(
        self, source: Network | None, backend: str | None, service: str | None, most: int
    ) -> FlowsStatus:
        """Open flows: how many, and at most so many of them. Raises CommandError."""
        return await self._open_flows.listed(source, backend, service, most)

    async def move(self, source: Address, backend: str, service: str | None) -> FlowsStatus:
        """Let the flows of a source go to a backend; what they are now. Raises CommandError."""
        return await self._open_flows.move(source, backend, service)

    def explain(
        self, source: Address, vip: Address, protocol: Listener, port: int | None, mark: int
    ) -> Explanation:
        """What would become of a packet now, and why. Raises CommandError."""
        return explain(self.memory, self.backends, (source, vip), protocol, port, mark)

    async def what_if(
        self,
        weights: dict[str, int],
        without: list[str],
        add: list[Backend],
        scheduler: str | None,
        service: str | None,
    ) -> Forecast:
        """What would become of flows if that were said. Raises CommandError."""
        async with self._reload.lock:
            return await self._what_if.asked(weights, without, add, scheduler, service)

    async def events_after(self, number: int, wait_s: float) -> list[Event]:
        """The last events with a higher number, or those that come within a time."""
        return await self._events.after(number, wait_s)

    async def reload(self, dry_run: bool = False) -> Outcome:
        """Take over a changed configuration, or only say what that would change."""
        return await self._reload.reload(dry_run)

    async def compare(self, config: Config) -> Outcome:
        """What it would change to take over this configuration."""
        return await self._reload.compare(config)

    async def add(self, service: str, backend: Backend) -> Outcome:
        """Add a backend to a service."""
        return await self._reload.added(service, backend)

    async def remove(self, backend: str, service: str | None) -> Outcome:
        """Take the backends with this name or address out of their services, or of the one that is named."""
        try:
            numbers = self.steering.named(backend, service)
        except CommandError as error:
            return Outcome(mistakes=(str(error),))
        return await self._reload.remove_all([self.backends.services.key(number) for number in numbers])

    def unsaved(self) -> Unsaved:
        """What was changed at run time, and the file that it may be written into."""
        return self.backends.unsaved(self._file)

    async def restart(self) -> list[str]:
        """Become the program anew, as its files are now, while workers go on; what keeps it from that."""
        if self._reload.lock.locked():
            return ["a reload is under way; try again when the log says what came of it"]
        async with self._reload.lock:
            try:
                config = await read_again(self._load)
                if config.control_group is not None:
                    group_number(config.control_group)
                await self.network.planned(self.backends.imagined(config))
            except RefusedError as refused:
                return refused.mistakes
            except (NetworkError, TooLargeError) as error:
                return [str(error)]
        assert self._children
        self.backends.note()
        handed = Inherited(
            memory=self._memory_descriptor,
            queues={child.place.queue: child.place.descriptor for child in self._children.children},
            workers=[child.pid for child in self._children.children if child.pid],
            links=list(self.fast_path.links),
        )
        log.info(event("restarting"))
        asyncio.get_running_loop().call_later(_ANSWER_S, self._hand_on, handed)
        return []

    def _hand_on(self, handed: Inherited) -> None:
        """Become the program anew, unless a stop was asked for since."""
        if not self._stop.is_set():
            hand_on(handed)

    def stop(self) -> None:
        """End, as at SIGTERM."""
        self._stop.set()

    async def _end(self, children: Children) -> None:
        """Serve no more. What was taken over goes on for the next start, if this one has failed."""
        if self._adopted and not self._served and not self._stop.is_set():
            log.warning(
                event(
                    "workers-left",
                    workers=len(children.running()),
                    effect="they go on; the next start takes them over",
                )
            )
            return
        try:
            if self._served or self._adopted:
                await self.changes.say_goodbye(self.backends.services.part_of)
            self.fast_path.stop_requests()
            await self.network.take_down()
            self.fast_path.stop()
        except NetworkError as error:
            self._taken_back = False
            log.error(
                event(
                    "not-taken-back",
                    cause=str(error),
                    effect="no packet for a VIP passes until the next start, or 'loaded-mp cleanup'",
                )
            )
        finally:
            await children.stop()


async def _own_addresses() -> Sequence[tuple[str, Interface]]:
    """Of this machine, with their interfaces. Raises NetworkError."""
    return (await aside(lambda: read_links(with_routes=False))).addresses
