"""What was changed at run time goes into the file, whose comments stay."""

import os
from pathlib import Path
from typing import Any

import pytest

from loaded_mp.config.errors import ConfigError
from loaded_mp.config.model import Backend
from loaded_mp.config.saving import BACKUP, Unsaved, changed, save
from loaded_mp.config.toml import parse_toml
from loaded_mp.fields import Endpoint

FILE = """\
workers = 2  # not more

# The site.
[[service]]
name = "web"
vips = ["192.0.2.10"]

[[service.backend]]
address = "10.0.0.1"
weight = 3  # a big one

# The old one.
[[service.backend]]
address = "10.0.0.2"
# It is slow.

# --- Names.

[[service]]
name = "dns"
vips = ["192.0.2.11"]

[[service.backend]]
address = "10.0.0.3"
"""
INLINE = """\
[[service]]
name = "web"
vips = ["192.0.2.10"]
backend = [
    { address = "10.0.0.1" },  # one
    { address = "10.0.0.2" },  # two
]
"""


def backend(address: str, **more: Any) -> tuple[str, Backend]:
    return "web", Backend.model_validate({"address": address, **more})


def unsaved(**what: Any) -> Unsaved:
    return Unsaved(file=None, **what)


def test_one_that_was_added_stands_behind_the_others() -> None:
    after = changed(
        FILE, "f", unsaved(added=(backend("10.0.0.8", weight=2, name="new"), backend("10.0.0.9")))
    )
    new = (
        '[[service.backend]]\naddress = "10.0.0.8"\nweight = 2\nname = "new"\n\n'
        '[[service.backend]]\naddress = "10.0.0.9"\n\n'
    )
    assert after == FILE.replace("# --- Names.", new + "# --- Names.")


def test_of_one_that_was_removed_nothing_is_left_and_what_follows_stays() -> None:
    after = changed(FILE, "f", unsaved(removed=(("web", Endpoint.read("10.0.0.2")),)))
    gone = '[[service.backend]]\naddress = "10.0.0.2"\n# It is slow.\n\n'
    assert after == FILE.replace(gone, "")
    first = changed(FILE, "f", unsaved(removed=(("web", Endpoint.read("10.0.0.1")),)))
    assert [str(each.address) for each in parse_toml(first, "f").config().services[0].backends] == [
        "10.0.0.2"
    ]
    assert "# --- Names." in first


def test_backends_on_one_address_are_told_apart_by_their_ports() -> None:
    text = (
        '[[service]]\nname = "web"\nvips = ["192.0.2.10"]\nlisten = ["tcp/80"]\n'
        '[[service.backend]]\naddress = "10.0.0.1:8080"\n[[service.backend]]\naddress = "10.0.0.1:8081"\n'
    )
    changes = unsaved(
        added=(backend("10.0.0.1:8082"), backend("[fd00::1]:8080")),
        removed=(("web", Endpoint.read("10.0.0.1:8081")),),
        weights=(("web", Endpoint.read("10.0.0.1:8080"), 7),),
    )
    assert changes.lines()[1:] == [
        "service web: + backend 10.0.0.1:8082, weight 1",
        "service web: + backend [fd00::1]:8080, weight 1",
        "service web: backend 10.0.0.1:8080: weight 7",
    ]
    saved = changed(text, "f", changes)
    assert [line for line in saved.splitlines() if "=" in line][3:] == [
        'address = "10.0.0.1:8080"',
        "weight = 7",
        'address = "10.0.0.1:8082"',
        'address = "[fd00::1]:8080"',
    ]


def test_a_weight_is_set_where_it_stands_or_behind() -> None:
    weights = (("web", Endpoint.read("10.0.0.1"), 7), ("dns", Endpoint.read("10.0.0.3"), 0))
    after = changed(FILE, "f", unsaved(weights=weights))
    assert after == FILE.replace("weight = 3 ", "weight = 7 ") + "weight = 0\n"


def test_a_list_of_one_line_tables() -> None:
    after = changed(
        INLINE,
        "f",
        unsaved(
            added=(backend("10.0.0.9", name="new"),),
            removed=(("web", Endpoint.read("10.0.0.1")),),
            weights=(("web", Endpoint.read("10.0.0.2"), 5),),
        ),
    )
    said = parse_toml(after, "f").config().services[0].backends
    assert [(str(each.address), each.weight, each.name) for each in said] == [
        ("10.0.0.2", 5, ""),
        ("10.0.0.9", 1, "new"),
    ]
    assert "# two" in after


def test_a_service_that_is_gone_is_said() -> None:
    with pytest.raises(ConfigError, match="f: service 'web': is no service there any more"):
        changed(FILE.replace('"web"', '"site"'), "f", unsaved(added=(backend("10.0.0.9"),)))


def test_the_file_is_replaced_as_a_whole_and_kept_as_it_was(tmp_path: Path) -> None:
    file, link = tmp_path / "f.toml", tmp_path / "link.toml"
    file.write_text(FILE)
    file.chmod(0o640)
    link.symlink_to(file)
    what = unsaved(added=(backend("10.0.0.9"),))
    backup = save(link, what)
    assert backup == file.with_name("f.toml" + BACKUP)
    assert backup.read_text() == FILE
    assert link.is_symlink()
    assert parse_toml(file.read_text(), "f").config().services[0].backends[2].address == Endpoint.read(
        "10.0.0.9"
    )
    assert {each.stat().st_mode & 0o777 for each in (file, backup)} == {0o640}
    assert save(link, what) is None
    assert sorted(os.listdir(tmp_path)) == ["f.toml", "f.toml" + BACKUP, "link.toml"]


def test_what_would_be_a_mistake_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    with pytest.raises(ConfigError, match="no VIP has an IPv6 address"):
        save(file, unsaved(added=(backend("fd00::9"),)))
    assert file.read_text() == FILE
    assert os.listdir(tmp_path) == ["f.toml"]


def test_a_service_whose_backends_are_discovered_gets_its_first_in_the_file() -> None:
    text = """\
[network]
private_interface = "eth1"
backend_networks = ["10.0.0.0/24"]

[[service]]
name = "web"
vips = ["192.0.2.10"]

[service.check]
port = 80

[service.discovery]
most = 9

# --- Names.
[[service]]
name = "dns"
vips = ["192.0.2.11"]

[[service.backend]]
address = "10.0.0.3"
"""
    after = changed(text, "f", unsaved(added=[backend("10.0.0.1"), backend("10.0.0.2", weight=2)]))
    before, now = (parse_toml(each, "f").config() for each in (text, after))
    web, dns = now.services
    assert [(str(each.address), each.weight) for each in web.backends] == [("10.0.0.1", 1), ("10.0.0.2", 2)]
    assert (web.discovery, dns) == (before.services[0].discovery, before.services[1])
    gone = unsaved(
        removed=[("web", Endpoint.read("10.0.0.9"))], weights=[("web", Endpoint.read("10.0.0.9"), 3)]
    )
    assert changed(text, "f", gone) == text
