"""What a service remembers of the affinity that it had before."""

from building import service

from loaded_mp.config.model import Config
from loaded_mp.memory.shared import new_shared_memory
from loaded_mp.supervisor.backends import Backends


def with_affinity(affinity: str) -> Config:
    return Config(services=(service("web", ["192.0.2.10"], {"10.0.0.1": 1}, affinity=affinity),))


def test_a_second_change_says_whose_flows_move() -> None:
    supervised = Backends(new_shared_memory(1_024, 1), with_affinity("connection"))

    def may_move(affinity: str) -> list[str]:
        return list(supervised.may_move(supervised.imagined(with_affinity(affinity))))

    assert may_move("source/24") == []
    supervised.configure(supervised.expand(with_affinity("source/24"), supervised.services))
    assert may_move("source") == ["service web: IPv4 flows from before its last change of affinity move"]
    assert may_move("source/24") == may_move("connection") == []
