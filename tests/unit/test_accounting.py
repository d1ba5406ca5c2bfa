"""Counters of others than workers: they only rise, and say how old they are."""

import asyncio

import pytest
from building import service

from loaded_mp.config.model import Config
from loaded_mp.forwarding import FORWARDINGS
from loaded_mp.forwarding.forwarding import Counted, Family
from loaded_mp.memory.counters import BackendCounter
from loaded_mp.network.errors import NetworkError
from loaded_mp.services import Ids
from loaded_mp.supervisor import accounting as accounting_module
from loaded_mp.supervisor.accounting import Accounting

PACKETS = BackendCounter.TO_BACKEND_PACKETS
SERVICES = Ids().expand(Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}),)))


class Rules:
    """What the kernel has counted."""

    def __init__(self) -> None:
        self.packets: dict[int, int] = {}
        self.fault = ""

    def counted(self, families: tuple[Family, ...]) -> dict[int, Counted]:
        assert families == (4,)
        if self.fault:
            raise NetworkError(self.fault)
        return {number: {PACKETS: packets} for number, packets in self.packets.items()}


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Rules:
    rules = Rules()
    monkeypatch.setattr(FORWARDINGS["rewrite"], "counted", rules.counted, raising=False)
    monkeypatch.setattr(accounting_module, "_INTERVAL_S", 0.001)
    return rules


def packets(accounting: Accounting) -> dict[int, int]:
    return {number: counted[PACKETS] for number, counted in accounting.counted.items()}


async def reads(accounting: Accounting, expected: dict[int, int]) -> None:
    """Let it read until it shows what is expected."""
    async with asyncio.timeout(5):
        reading = asyncio.create_task(accounting.run(lambda: SERVICES))
        while packets(accounting) != expected:
            await asyncio.sleep(0.001)
        reading.cancel()


def test_counters_rise_though_the_kernels_begin_anew(rules: Rules) -> None:
    async def run() -> None:
        accounting = Accounting()
        rules.packets = {1: 5, 2: 7}
        await reads(accounting, {1: 5, 2: 7})
        rules.packets = {1: 3, 2: 9}  # 1 was replaced
        await reads(accounting, {1: 8, 2: 9})
        rules.packets = {1: 4}  # 2 is gone
        await reads(accounting, {1: 9, 2: 9})
        accounting.forget(2)
        assert packets(accounting) == {1: 9}

    asyncio.run(run())


def test_whoever_replaces_rules_loses_no_count_though_they_rise_quickly(rules: Rules) -> None:
    async def run() -> None:
        accounting = Accounting()
        rules.packets = {1: 5}
        async with accounting.beginning_anew(SERVICES):
            rules.packets = {1: 50}
        assert packets(accounting) == {1: 5}
        await reads(accounting, {1: 55})

    asyncio.run(run())


def test_rules_that_could_not_be_replaced_go_on(rules: Rules) -> None:
    async def run() -> None:
        accounting = Accounting()
        rules.packets = {1: 5}
        with pytest.raises(NetworkError, match="in vain"):
            async with accounting.beginning_anew(SERVICES):
                raise NetworkError("in vain")
        rules.packets = {1: 6}
        await reads(accounting, {1: 6})

    asyncio.run(run())


def test_what_cannot_be_read_stays_ages_and_is_said_once(
    rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0

    async def run() -> None:
        nonlocal now_s
        accounting = Accounting(clock=lambda: now_s)
        rules.packets = {1: 5}
        await reads(accounting, {1: 5})
        now_s, rules.fault = 100.0, "iptables-save is stuck"
        reading = asyncio.create_task(accounting.run(lambda: SERVICES))
        while not accounting.fault:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert (packets(accounting), accounting.age_s) == ({1: 5}, 100.0)
        assert accounting.fault == "iptables-save is stuck"
        reading.cancel()
        rules.packets, rules.fault = {1: 6}, ""
        await reads(accounting, {1: 6})
        assert (accounting.fault, accounting.age_s) == ("", 0.0)

    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == ['event=counters-not-read cause="iptables-save is stuck" effect="they stay as they are"']
