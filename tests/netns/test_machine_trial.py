"""This machine on a real kernel: queues and rules are really tried, and nothing is left behind."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

#: Prints what is found, and what is in the namespace before and after.
_SCRIPT = """
import dataclasses, json, subprocess
from pathlib import Path
from loaded_mp.machine import findings
def state():
    commands = "iptables-save", "ip6tables-save", "iptables-legacy-save", "ip address", "ip link"
    said = [subprocess.run(c.split(), capture_output=True, text=True, check=True).stdout for c in commands]
    lines = [line for each in said for line in each.splitlines() if not line.startswith("#")]
    names = "net/netfilter/nfnetlink_queue", "sys/net/ipv4/ip_forward", "sys/net/ipv6/conf/all/forwarding"
    return lines + [(Path("/proc") / name).read_text() for name in names]
before = state()
found = [dataclasses.asdict(each) for each in findings(None)]
print(json.dumps([found, before, state()]))
"""
_DROP = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]


def findings_in_a_namespace(variant: str, *prefix: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        ["unshare", "--net", *prefix, sys.executable, "-c", _SCRIPT],
        env=os.environ | {"LOADED_MP_IPTABLES": variant},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, before, after = json.loads(done.stdout)
    assert before == after
    return {each["what"]: each for each in found}


@pytest.mark.parametrize("variant", ["", "nft", "legacy"])
def test_queues_and_rules_are_tried_and_nothing_is_left(variant: str) -> None:
    found = findings_in_a_namespace(variant)
    assert found["NFQUEUE"]["level"] == "ok"
    for what in ("rules IPv4", "rules IPv6"):
        assert found[what]["level"] == "ok"
        assert found[what]["text"].startswith("stood in the tables")


def test_without_a_namespace_of_its_own_rules_are_only_tested() -> None:
    found = findings_in_a_namespace("nft", *_DROP)
    assert found["NFQUEUE"]["level"] == "ok"
    for what in ("rules IPv4", "rules IPv6"):
        assert found[what]["text"].startswith("were tested")
