"""What the daemon says of itself, from shared memory."""

import numpy as np
from building import service

from loaded_mp.config.model import Config
from loaded_mp.fastpath.loader import FastPath
from loaded_mp.memory.counters import OF_REQUESTS, BackendCounter, Counter, FlowTableCounter, WorkerCounter
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.packet.reasons import Reason
from loaded_mp.status import Status
from loaded_mp.supervisor.accounting import Accounting
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.children import Children
from loaded_mp.supervisor.drift import Drift
from loaded_mp.supervisor.publisher import Publisher
from loaded_mp.supervisor.rates import Rates
from loaded_mp.supervisor.report import Report
from loaded_mp.supervisor.sweep import Count
from loaded_mp.worker import Place


def status(forwarding: str = "rewrite") -> Status:
    config = Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, forwarding=forwarding),))
    memory = new_shared_memory(1_024, 1)
    children = Children([Place(0, 0, 0, 0, None, "nobody")], lambda *_: None, lambda _: 0.0)
    backends, flows = Backends(memory, config), Count(memory)
    accounting = Accounting()
    rates = Rates(memory, accounting)
    report = Report(
        memory, backends, children, flows, Publisher(memory, list), accounting, Drift(), rates, FastPath(())
    )
    return report.status(None)


def test_rates_are_those_between_the_last_two_readings() -> None:
    memory, now_s = new_shared_memory(1_024, 2), [100.0]
    rates = Rates(memory, Accounting(), lambda: now_s[0])
    memory.backends[0, 7, BackendCounter.NEW_FLOWS] += np.uint64(30)
    memory.backends[1, 7, BackendCounter.NEW_FLOWS] += np.uint64(20)
    assert rates.of(7, BackendCounter)["new_flows"] == 0
    now_s[0] += 5
    rates.read()
    assert rates.of(7, BackendCounter) == dict.fromkeys(names(BackendCounter), 0.0) | {"new_flows": 10.0}
    now_s[0] += 5
    memory.backends[:, 7] = 0  # another backend has the id now
    rates.read()
    assert set(rates.of(7, BackendCounter).values()) == {0.0}


def names(counters: type[Counter]) -> list[str]:
    return [each.name.lower() for each in counters]


def test_every_counter_is_reported() -> None:
    now = status()
    assert list(now.services[0].backends[0].counters) == names(BackendCounter)
    assert list(status(forwarding="dr").services[0].backends[0].rates) == [
        each.name.lower() for each in OF_REQUESTS
    ]
    assert list(now.workers[0].counters) == names(WorkerCounter)
    assert list(now.flow_table.counters) == names(FlowTableCounter)
    assert list(now.reasons) == [each.name.lower() for each in Reason if each is not Reason.OK]
