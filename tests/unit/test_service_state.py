"""What backends are for their service: backups, panic, slow starts, flaps, quorum."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import service

from loaded_mp.checks.check import Finding
from loaded_mp.checks.runner import Result, Target
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Config, Service
from loaded_mp.config.toml import parse_toml, to_toml
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.memory.snapshot import MAX_SLOTS, Snapshot
from loaded_mp.schedulers.scheduler import RISE_STEPS
from loaded_mp.services import TooLargeError, services_of
from loaded_mp.status import Wanted
from loaded_mp.supervisor import quorum as quorum_module
from loaded_mp.supervisor import state as state_module
from loaded_mp.supervisor.backends import Backends
from loaded_mp.supervisor.handover import Adopted, read_state
from loaded_mp.supervisor.state import BackendState

CHECK = {"port": 80, "rise": 1, "fall": 1}


class Machine:
    """The backends of a daemon, whose clock we set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *services: Service) -> None:
        self.now_s = time.monotonic() + 1
        monkeypatch.setattr(state_module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.memory = new_shared_memory(1_024, 1)
        self.backends = Backends(self.memory, Config(services=services))

    def heard(self, address: str, passed: bool) -> None:
        """A check found this of the backends at an address."""
        for target in self.backends.targets():
            if str(target.endpoint.ip) == address:
                self.backends.heard(
                    Result(
                        Target(target.backend, target.endpoint, target.check),
                        Finding(None if passed else "refused"),
                        self.now_s,
                    )
                )

    def state(self, address: str) -> BackendState:
        (number,) = (
            number
            for number, part in self.backends.services.part_of.items()
            if str(part.backends[number].address) == address
        )
        return self.backends.states[number]

    @property
    def weights(self) -> dict[str, int]:
        """What workers spread new flows by."""
        snapshot = self.snapshot()
        return {
            str(backend.address): int(snapshot.backend_weights[number])
            for part in self.backends.services.parts
            for number, backend in part.backends.items()
        }

    def snapshot(self) -> Snapshot:
        snapshot = self.memory.snapshots[0]
        self.backends.fill(snapshot)
        return snapshot


def web(*backups: str, weights: dict[str, int] | None = None, **more: Any) -> Service:
    made = service(
        "web",
        ["192.0.2.10"],
        weights or {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 1},
        checks=[CHECK],
        **more,
    )
    backends = tuple(
        each.model_copy(update={"backup": str(each.address) in backups}) for each in made.backends
    )
    return made.model_copy(update={"backends": backends})


def test_backups_serve_while_no_other_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, web("10.0.0.2", "10.0.0.3"))
    assert machine.weights == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
    assert machine.state("10.0.0.2").left_out(1) == "backup, and others serve"
    machine.heard("10.0.0.1", False)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 1}
    machine.heard("10.0.0.3", False)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
    assert "no-backend" not in caplog.text
    machine.heard("10.0.0.2", False)
    assert machine.weights == dict.fromkeys(machine.weights, 0)
    assert caplog.text.count("event=no-backend service=web family=IPv4") == 1
    machine.heard("10.0.0.1", True)
    machine.heard("10.0.0.2", True)
    assert machine.weights == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
    assert machine.state("10.0.0.2").usable  # the flows that it got stay
    machine.state("10.0.0.1").wanted = Wanted.DRAIN
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
    assert machine.state("10.0.0.1").left_out(1) == "drain"


def test_the_families_of_a_service_are_judged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = service(
        "web", ["192.0.2.10", "2001:db8::10"], {"10.0.0.1": 1, "10.0.0.2": 1, "fd00::1": 1}, checks=[CHECK]
    )
    backends = tuple(
        each.model_copy(update={"backup": str(each.address) == "10.0.0.2"}) for each in made.backends
    )
    machine = Machine(monkeypatch, made.model_copy(update={"backends": backends}))
    machine.heard("10.0.0.1", False)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "fd00::1": 1}


def test_who_is_left_when_all_are_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, web("10.0.0.3", all_down="spread"))
    for address in ("10.0.0.1", "10.0.0.2"):
        machine.heard(address, False)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}
    machine.heard("10.0.0.3", False)
    assert machine.weights == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
    assert 'event=no-backend service=web family=IPv4 effect="clients are spread over' in caplog.text
    machine.heard("10.0.0.2", True)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}


def test_a_panic_is_said_once_and_all_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, web(panic_share=0.5))
    machine.heard("10.0.0.1", False)
    assert machine.weights == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 1}
    machine.heard("10.0.0.2", False)
    assert machine.weights == dict.fromkeys(machine.weights, 1)
    assert not machine.state("10.0.0.2").up
    assert machine.state("10.0.0.2").usable  # so that nobody lets go of its connections
    machine.heard("10.0.0.3", False)
    machine.state("10.0.0.3").wanted = Wanted.MAINTENANCE  # the operator is always believed
    assert machine.weights == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
    assert caplog.text.count("event=panic ") == 1
    assert "ERROR" in caplog.text
    caplog.set_level("INFO")
    machine.heard("10.0.0.1", True)
    assert machine.weights == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
    assert caplog.text.count("event=panic-over ") == 1


def test_a_backend_that_comes_back_starts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, web(slow_start_s=100))
    for address in machine.weights:
        machine.heard(address, True)
    assert machine.weights == dict.fromkeys(machine.weights, 1)  # never at the start
    assert not machine.backends.rise
    machine.heard("10.0.0.1", False)
    machine.heard("10.0.0.1", True)
    machine.now_s += 1
    shares = []
    for _ in range(4):
        weights = machine.weights
        shares.append(weights["10.0.0.1"] / weights["10.0.0.2"])
        assert machine.backends.rise
        machine.now_s += 25
    assert shares == pytest.approx([0.01, 0.26, 0.51, 0.76], abs=1 / RISE_STEPS)
    assert not machine.backends.rise
    assert machine.weights == dict.fromkeys(machine.weights, 1)


def test_a_backend_that_joins_starts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    both = web(slow_start_s=100, weights={"10.0.0.1": 3, "10.0.0.2": 2})
    alone = both.model_copy(update={"backends": both.backends[:1]})
    machine = Machine(monkeypatch, alone)
    machine.backends.configure(machine.backends.expand(Config(services=(both,)), machine.backends.services))
    machine.heard("10.0.0.2", True)
    machine.now_s += 50
    assert machine.weights == {"10.0.0.1": 3 * RISE_STEPS, "10.0.0.2": RISE_STEPS}


def test_a_slow_start_outlives_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, web(slow_start_s=100))
    machine.heard("10.0.0.1", False)
    machine.heard("10.0.0.1", True)
    machine.now_s += 50
    machine.backends.note()
    noted = read_state(machine.memory)
    assert noted
    adopted = Adopted(machine.memory, 0, *noted, {}, [], [])
    machine.backends = Backends(machine.memory, machine.backends.services.config, adopted)
    assert machine.weights == {"10.0.0.1": 10, "10.0.0.2": 20, "10.0.0.3": 20}


def test_room_is_kept_for_weights_that_rise() -> None:
    many = [
        service(
            f"s{n}", [f"192.0.{n // 250}.{n % 250}"], {"10.0.0.1": 100, "10.0.0.2": 100}, slow_start_s=n % 2
        )
        for n in range(2 * MAX_SLOTS // (200 * RISE_STEPS))
    ]
    services_of(Config(services=tuple(many)))
    with pytest.raises(TooLargeError, match="slots"):
        services_of(
            Config(
                services=tuple(each.model_copy(update={"slow_start_s": 1}) for each in [*many, *many[:10]])
            )
        )


def test_who_goes_down_again_and_again_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, web(flaps=3, flaps_within_s=100, flap_wait_s=60))
    state = machine.state("10.0.0.1")

    def flap() -> None:
        machine.now_s += 10
        machine.heard("10.0.0.1", False)
        machine.now_s += 1
        machine.heard("10.0.0.1", True)

    flap()
    flap()
    assert state.up
    flap()
    assert not state.up
    assert state.left_out(1) == "down: passes, but went down 3 times: waits 59 s more"
    machine.now_s += 30
    machine.heard("10.0.0.1", False)
    assert state.left_out(1).endswith("refused")
    machine.heard("10.0.0.1", True)
    assert not state.up
    machine.now_s += 30
    machine.heard("10.0.0.1", True)
    assert state.up
    flap()
    assert not state.up  # once more within the time
    machine.now_s += 61
    machine.heard("10.0.0.1", True)
    machine.now_s += 100
    flap()
    assert state.up


def quorum_of(folder: Path, **more: Any) -> Service:
    """A service that writes down what happens to its quorum, slowly."""
    script = folder / "say"
    script.write_text(f'#!/bin/sh\nsleep 0.05\necho "$@" >> {folder}/said\n')
    script.chmod(0o755)
    words = {f"quorum_{way}": [str(script), way, "{service}", "{family}"] for way in ("up", "down")}
    return web(weights={"10.0.0.1": 2, "10.0.0.2": 1}, quorum=2, **words, **more)


Step = tuple[Callable[[], None], Callable[[], bool]]  #: what happens, and what is then waited for


def run_quorum(machine: Machine, *steps: Step) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            running = asyncio.create_task(machine.backends.quorum.run())
            await asyncio.sleep(0)
            for happens, until in steps:
                happens()
                while not until():
                    await asyncio.sleep(0.01)
            running.cancel()

    asyncio.run(main())


def nothing() -> None:
    pass


def test_a_quorum_is_weighed_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, quorum_of(tmp_path))
    said = tmp_path / "said"

    def says(*lines: str) -> Callable[[], bool]:
        return lambda: said.exists() and said.read_text().splitlines() == [*lines]

    machine.heard("10.0.0.2", False)
    run_quorum(
        machine,
        (nothing, says("up web 4")),
        (lambda: machine.heard("10.0.0.1", False), says("up web 4", "down web 4")),
        (lambda: machine.heard("10.0.0.1", True), says("up web 4", "down web 4", "up web 4")),
    )


def test_only_what_is_still_true_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, quorum_of(tmp_path))

    def flap() -> None:
        for _ in range(50):
            machine.heard("10.0.0.1", False)
            machine.heard("10.0.0.1", True)
        machine.heard("10.0.0.1", False)

    said = tmp_path / "said"
    run_quorum(machine, (flap, lambda: said.exists() and "down" in said.read_text()))
    assert len(said.read_text().splitlines()) <= 2


def test_a_command_that_hangs_or_fails_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quorum_module, "TIMEOUT_S", 0.1)
    machine = Machine(monkeypatch, web(quorum_up=["/bin/sleep", "60"], quorum_down=["/bin/false"]))
    failed = "event=quorum-command-failed service=web family=IPv4 command="

    def all_down() -> None:
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
            machine.heard(address, False)

    run_quorum(
        machine,
        (nothing, lambda: f"{failed}/bin/sleep" in caplog.text),
        (all_down, lambda: f'{failed}/bin/false cause="status 1"' in caplog.text),
    )
    assert "has not ended within 0.1 s and was killed" in caplog.text


SERVICE = '[[service]]\nname = "web"\nvips = ["192.0.2.10"]\n'
BACKEND = '[[service.backend]]\naddress = "10.0.0.{}"\nweight = {}\n'


def test_weights_that_are_all_0_are_a_mistake_unless_it_is_said() -> None:
    zeros = BACKEND.format(1, 0) + BACKEND.format(2, 0)
    with pytest.raises(ConfigError, match=r"a.toml:4: .*expected one \(in TOML all_zero = true"):
        parse_toml(SERVICE + zeros, "a.toml").config()
    parse_toml(f"{SERVICE}all_zero = true\n{zeros}", "a.toml").config()
    parse_toml(SERVICE + zeros + BACKEND.format(3, 1), "a.toml").config()


def test_the_settings_are_written_and_read_alike() -> None:
    config = Config(
        services=(web("10.0.0.2", panic_share=0.3, quorum_up=["/bin/true", "x"], flaps=4, slow_start_s=9),)
    )
    assert parse_toml(to_toml(config), "a.toml").config() == config
    for wrong in ('quorum_up = ["true"]', 'quorum_user = "nobody at all"', "panic_share = 1.5", "flaps = 1"):
        with pytest.raises(ConfigError, match=wrong.split()[0]):
            parse_toml(f"{SERVICE}{wrong}\n{BACKEND.format(1, 1)}", "a.toml").config()
