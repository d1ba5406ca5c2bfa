"""The worker's loop without a kernel: a socket pair plays netfilter's queue, packets in, verdicts out."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from building import build, service
from scapy.layers.inet import IP, UDP
from test_messages import QUEUE, attribute, message

from loaded_mp.config.model import Config
from loaded_mp.datapath import loop
from loaded_mp.datapath.loop import Batch, give_back, new_batch, serve
from loaded_mp.datapath.messages import HOOK_PREROUTING, NF_ACCEPT, NF_DROP, NF_REPEAT
from loaded_mp.memory.counters import WorkerCounter
from loaded_mp.memory.shared import SharedMemory, Stamp, new_shared_memory
from loaded_mp.packet.reasons import Reason
from loaded_mp.services import Ids
from loaded_mp.supervisor.snapshots import fill
from loaded_mp.supervisor.state import BackendState

CLIENT, VIP, BACKEND = "198.51.100.7", "192.0.2.10", "10.0.0.1"
VERDICT, BATCH_VERDICT, PAYLOAD = 1, 3, 10
#: Messages that wait in a Unix socket (net.unix.max_dgram_qlen, at the least).
WAITING = 10


@dataclass
class Kernel:
    """The other end of the socket."""

    end: socket.socket

    def queue(self, packet_id: int, packet: bytes, hook: int = HOOK_PREROUTING) -> None:
        self.end.send(message(packet_id, hook, packet))

    def verdicts(self) -> list[tuple[int, int, bytes]]:
        """Packet id, verdict and payload of each verdict, in the order and by the messages they came in."""
        return [verdict for sent in self.sent() for verdict in sent]

    def sent(self) -> list[list[tuple[int, int, bytes]]]:
        found: list[list[tuple[int, int, bytes]]] = []
        while True:
            try:
                data = self.end.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.append(list(parsed(data)))


def parsed(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The verdicts in a netlink message, each aligned to 4 bytes."""
    while data:
        (length, kind) = struct.unpack_from("=IH", data)
        assert kind in (3 << 8 | VERDICT, 3 << 8 | BATCH_VERDICT)
        assert struct.unpack_from("!H", data, 18) == (QUEUE,)
        verdict, packet_id = struct.unpack_from("!II", data, 24)
        payload = b""
        if length > 32:
            size, attribute = struct.unpack_from("=HH", data, 32)
            payload = data[36 : 32 + size] if attribute == PAYLOAD else b""
        yield packet_id, verdict, payload
        data = data[(length + 3) & ~3 :]


@dataclass
class Worker:
    """A worker's end, its memory, and the kernel opposite."""

    kernel: Kernel
    batch: Batch
    memory: SharedMemory

    def serve(self, replacing: bool = False) -> int:
        return serve(self.batch, self.memory, 0, replacing)

    def counted(self, counter: WorkerCounter) -> int:
        return int(self.memory.workers[0, counter])

    def reasons(self) -> dict[Reason, int]:
        return {r: int(self.memory.reasons[0, r]) for r in Reason if self.memory.reasons[0, r]}


@pytest.fixture
def worker() -> Iterator[Worker]:
    memory = new_shared_memory(1_024, 1)
    services = Ids().expand(Config(services=(service("web", [VIP], {BACKEND: 1}, listen=["udp/53"]),)))
    fill(memory.snapshots[0], services.parts, {number: BackendState() for number in services.part_of})
    kernel, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
    for end in (kernel, mine):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 100_000))
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
    with kernel, mine:
        yield Worker(Kernel(kernel), new_batch(mine.fileno(), QUEUE), memory)


def request(destination: str = VIP, port: int = 53, data: bytes = b"question") -> bytes:
    return bytes(IP(src=CLIENT, dst=destination) / UDP(sport=1000, dport=port) / data)


def test_packets_in_verdicts_out(worker: Worker) -> None:
    worker.kernel.queue(1, request())
    worker.kernel.queue(2, request(port=54))
    worker.kernel.queue(3, request()[:-1])
    assert worker.serve() == 3
    assert worker.kernel.sent() == [
        [
            (1, NF_ACCEPT, request(BACKEND)),
            (2, NF_ACCEPT, b""),
            (3, NF_DROP, b""),
        ]
    ], "one message for all of a batch"
    assert worker.reasons() == {Reason.OK: 1, Reason.NO_SERVICE: 1, Reason.TRUNCATED: 1}
    assert worker.counted(WorkerCounter.PACKETS) == 3
    assert worker.counted(WorkerCounter.BATCHES) == 1
    assert int(worker.memory.stamps[0, Stamp.LAST_READ_ID]) == 3
    assert int(worker.memory.stamps[0, Stamp.HEARTBEAT_MS]) > 0


def test_with_nothing_to_do_it_comes_back_and_speaks_up(worker: Worker) -> None:
    worker.memory.generation[0] = 6
    assert worker.serve() == 0
    assert worker.kernel.sent() == []
    assert int(worker.memory.stamps[0, Stamp.GENERATION]) == 6
    assert int(worker.memory.stamps[0, Stamp.HEARTBEAT_MS]) > 0


def test_messages_that_hold_no_packet_are_passed_over(worker: Worker) -> None:
    worker.kernel.end.send(struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -2) + bytes(16))
    worker.kernel.end.send(b"?")
    worker.kernel.queue(9, request())
    worker.serve()
    assert [verdict[0] for verdict in worker.kernel.verdicts()] == [9]
    assert worker.counted(WorkerCounter.PACKETS) == 1


def test_an_odd_length_does_not_shift_the_next_verdict(worker: Worker) -> None:
    for packet_id, size in enumerate(range(1, 8), 1):
        worker.kernel.queue(packet_id, request(data=bytes(size)))
    worker.serve()
    for packet_id, verdict, payload in worker.kernel.verdicts():
        expected = request(BACKEND, data=bytes(packet_id))
        assert (verdict, payload) == (NF_ACCEPT, expected)


def test_what_is_too_much_for_one_message_is_sent_in_several(worker: Worker) -> None:
    size = 60_000
    for packet_id in range(1, 7):
        worker.kernel.queue(packet_id, request(data=bytes(size)))
    worker.serve()
    sent = worker.kernel.sent()
    assert [packet_id for each in sent for packet_id, _, _ in each] == [1, 2, 3, 4, 5, 6]
    assert len(sent) == 2
    assert len(sent[0]) == 4, "as many as fit into 256 KiB"


def test_verdicts_that_do_not_go_together_go_one_by_one(worker: Worker) -> None:
    """Nor does the one that is longer than the socket takes."""
    with socket.socket(fileno=socket.dup(worker.batch.descriptor)) as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_000)
        for packet_id, size in ((1, 100), (2, 30_000), (3, 3_000)):
            worker.kernel.queue(packet_id, request(data=bytes(size)))
        worker.serve()
    assert [[verdict[0] for verdict in each] for each in worker.kernel.sent()] == [[1], [3]]
    assert worker.counted(WorkerCounter.UNSENT_VERDICTS) == 1


def test_all_that_waits_is_read_at_once(worker: Worker) -> None:
    for packet_id in range(1, WAITING + 1):
        worker.kernel.queue(packet_id, request())
    assert worker.serve() == WAITING
    assert len(worker.kernel.sent()) == 1


def test_a_replacement_gives_back_what_was_read_before_it(worker: Worker) -> None:
    worker.kernel.queue(40, request())
    worker.kernel.queue(41, request())
    worker.serve(replacing=True)
    first, *others = worker.kernel.sent()
    assert first == [(39, NF_REPEAT, b"")]
    assert [verdict[0] for verdict in others[0]] == [40, 41]
    give_back(worker.batch, 77)
    assert worker.kernel.verdicts() == [(77, NF_REPEAT, b"")]


def test_the_snapshot_that_holds_is_used(worker: Worker) -> None:
    other, _ = build(service("web", [VIP], {"10.0.0.2": 1}))
    for name, theirs in other._asdict().items():
        getattr(worker.memory.snapshots[1], name)[:] = theirs
    for generation, backend in ((0, BACKEND), (1, "10.0.0.2"), (2, BACKEND)):
        worker.memory.generation[0] = generation
        worker.memory.table.words[:] = np.uint64(0)
        worker.kernel.queue(generation + 1, request())
        worker.serve()
        ((_, verdict, payload),) = worker.kernel.verdicts()
        assert (verdict, payload) == (NF_ACCEPT, request(backend))
        assert int(worker.memory.stamps[0, Stamp.GENERATION]) == generation


def test_a_broken_socket_is_said(worker: Worker) -> None:
    with open("/dev/null") as no_socket:
        broken = new_batch(no_socket.fileno(), QUEUE)
        assert serve(broken, worker.memory, 0, False) < 0


def test_a_packet_without_a_mac_header_is_like_any_other(worker: Worker) -> None:
    """Attributes that nobody asked for are passed over."""
    worker.kernel.end.send(message(5, HOOK_PREROUTING, request(), attribute(99, b"12345")))
    worker.serve()
    assert [verdict[:2] for verdict in worker.kernel.verdicts()] == [(5, NF_ACCEPT)]


def test_slots_hold_the_longest_packet() -> None:
    assert loop._SLOT >= 20 + 490 + 65_535
    assert loop._SLOT % 4 == 0
