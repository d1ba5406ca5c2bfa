"""How full the kernel's table of connections is, and what is said of it."""

from pathlib import Path

import pytest

from loaded_mp.network.tracking import Tracked, read_tracked
from loaded_mp.supervisor.tracking import Tracking


def test_it_is_read_as_the_kernel_prints_it(tmp_path: Path) -> None:
    assert read_tracked(tmp_path) is None
    folder = tmp_path / "sys/net/netfilter"
    folder.mkdir(parents=True)
    (folder / "nf_conntrack_count").write_text("209716\n")
    (folder / "nf_conntrack_max").write_text("262144\n")
    assert read_tracked(tmp_path) == Tracked(209_716, 262_144)


def test_a_table_without_a_limit_is_never_full() -> None:
    assert Tracked(5_000, 0).percent == 0


def test_it_is_said_once_that_it_fills_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tracking = Tracking()
    for connections in (10, 799):
        tracking.heard(Tracked(connections, 1_000))
    tracking.heard(None)
    assert caplog.messages == []
    for connections in (800, 1_000, 790, 700, 810):
        tracking.heard(Tracked(connections, 1_000))
    (said,) = caplog.messages
    assert said.startswith("event=conntrack-full tracked=800 limit=1000 effect=")
    assert "sysctl -w net.netfilter.nf_conntrack_max=4000" in said
    for connections in (699, 5):
        tracking.heard(Tracked(connections, 1_000))
    assert caplog.messages[1:] == ["event=conntrack-not-full tracked=699 limit=1000"]
    tracking.heard(Tracked(900, 1_000))
    assert len(caplog.messages) == 3
