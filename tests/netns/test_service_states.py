"""Looking into a daemon that runs, and what it makes of backends that come and go, on a real kernel."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import Daemon, loaded_mp
from loaded_mp.lab.lab import VIP4, VIP6, VIPS, Lab, Options
from loaded_mp.lab.talk import Line
from loaded_mp.lab.wait import wait_until
from loaded_mp.status import Explanation, FlowsStatus


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=8)) as lab:
        yield lab


def said(lab: Lab, *words: str) -> str:
    """What a command prints, which must fit 80 columns."""
    output = lab.balancer.run(loaded_mp(), *words).stdout
    if "--json" not in words:
        assert max(map(len, output.splitlines())) <= 80, output
        print(output)
    return output


def who(lab: Lab, vip: str, source: str) -> str:
    """The name of the backend that answers a client."""
    (name,) = lab.answers("http", vip, 1, [source])[source]
    return name


def test_flows_are_seen_explained_and_moved(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(service='listen = ["tcp/80"]'))
    for vip in VIPS:
        for source in lab.sources(vip)[:2]:
            explained = Explanation.model_validate_json(
                said(lab, "explain", source, vip, "--port", "80", "--json")
            )
            assert explained.backend == who(lab, vip, source)
        said(lab, "explain", lab.sources(vip)[0], vip)
        said(lab, "explain", lab.sources(vip)[0], vip, "--protocol", "udp", "--port", "53")
    assert said(lab, "flows", "--count") == "4\n"
    found = FlowsStatus.model_validate_json(said(lab, "flows", "--json"))
    assert all(each.confirmed and each.left_s > 7_000 for each in found.flows)
    for vip in VIPS:
        source = lab.sources(vip)[0]
        other = next(each.name for each in lab.backends if each.name != who(lab, vip, source))
        said(lab, "move", source, other)
        assert who(lab, vip, source) == other
        assert other in said(lab, "flows", "--source", source)
    daemon.logged("event=flow-moved")
    daemon.stop()


@pytest.mark.parametrize("vip", VIPS)
def test_a_full_backend_gets_no_new_flow_until_one_has_ended(lab: Lab, vip: str) -> None:
    service = 'listen = ["tcp/7000"]\naffinity = "connection"\nall_down = "reject"'
    config = lab.config(service=service).replace("weight = 1\n", "weight = 1\nmost_flows = 2\n")
    daemon = lab.daemon(config)
    source = lab.sources(vip)[0]
    talking = [Line(lab.client, vip, source) for _ in range(2 * len(lab.backends))]
    homes = [line.ask().split()[0] for line in talking]
    assert Counter(homes) == {each.name: 2 for each in lab.backends}
    assert Line(lab.client, vip, source).begun == "ConnectionRefusedError"
    assert said(lab, "status").count("full: at most 2 flows") == len(lab.backends)
    talking[0].close()
    wait_until(lambda: Line(lab.client, vip, source).begun == "connected", "there is room again")
    assert [line.ask().split()[0] for line in talking[1:]] == homes[1:]
    daemon.stop()


def with_backup(lab: Lab, service: str) -> str:
    """A configuration whose third backend is a backup."""
    config = lab.config(service=service)
    for address in (lab.backends[2].ipv4, lab.backends[2].ipv6):
        config = config.replace(f'address = "{address}"\n', f'address = "{address}"\nbackup = true\n')
    return config


def quorum_script(lab: Lab) -> tuple[Path, Path]:
    """A program that writes down how it is called, and where."""
    script, told = lab.folder / "quorum", lab.folder / "quorum-told"
    script.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    script.chmod(0o755)
    return script, told


def up(daemon: Daemon) -> list[bool]:
    return [each.up for each in daemon.backends().values()]


def test_backups_quorum_and_no_backend(lab: Lab) -> None:
    script, told = quorum_script(lab)
    daemon = lab.daemon(
        with_backup(
            lab,
            f'quorum = 2\nquorum_up = ["{script}", "up", "{{service}}", "{{family}}"]\n'
            f'quorum_down = ["{script}", "down", "{{service}}", "{{family}}"]\nslow_start_s = 3\n',
        )
    )

    def tells(*lines: str) -> None:
        wait_until(lambda: sorted(told.read_text().splitlines()) == sorted(lines), f"told {lines}")
        told.write_text("")

    wait_until(told.exists, "the quorum is told")
    tells("up web 4", "up web 6")
    for vip in VIPS:
        assert "backup, and others serve" in said(lab, "explain", lab.sources(vip)[0], vip)
    for backend in lab.backends[:2]:
        backend.stop_web()
    wait_until(lambda: up(daemon) == [False, False, True] * 2, "two are down")
    tells("down web 4", "down web 6")
    last = {lab.backends[2].name}
    for vip in VIPS:  # workers hear of it a moment after status shows it
        wait_until(lambda v=vip: {who(lab, v, each) for each in lab.sources(v)} == last, "it serves all")  # type: ignore[misc]
    lab.backends[2].stop_web()
    daemon.logged("event=no-backend service=web family=IPv6")
    assert "goes to   nowhere" in said(lab, "explain", lab.sources4[0], VIP4)
    for backend in lab.backends:
        backend.start_web()
    wait_until(lambda: all(up(daemon)), "all are up")
    daemon.logged("event=backends-again service=web family=IPv4")
    tells("up web 4", "up web 6")
    events = said(lab, "events", "--json")
    assert all(f'"{name}"' in events for name in ("no-backend", "quorum-down", "backends-again"))
    wait_until(
        lambda: [each.effective_weight for each in daemon.backends().values()] == [1, 1, 0] * 2,
        "weights have risen",
    )
    assert "Traceback" not in daemon.log
    daemon.stop()


def test_a_panic_uses_all(lab: Lab) -> None:
    daemon = lab.daemon(lab.config(service="panic_share = 0.5"))
    for backend in lab.backends[:2]:
        backend.stop_web()
    wait_until(lambda: up(daemon) == [False, False, True] * 2, "two are down")
    daemon.logged("event=panic service=web family=IPv4")
    daemon.logged("event=panic service=web family=IPv6")
    assert [each.effective_weight for each in daemon.backends().values()] == [1] * 6
    for backend in lab.backends[:2]:
        backend.start_web()
    daemon.logged("event=panic-over service=web family=IPv6")
    assert VIP6 in said(lab, "status")
    daemon.stop()
