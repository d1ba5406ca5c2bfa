"""The least that a queue can be used for: accept every packet unread. What this costs is the kernel's part.

python tests/bench/accept_all.py QUEUES
"""

import multiprocessing
import sys

from loaded_mp.compiled import compiled
from loaded_mp.datapath.loop import Batch, new_batch, next_batch
from loaded_mp.datapath.messages import NF_ACCEPT, VERDICT_HEADER, read_message, write_verdict
from loaded_mp.datapath.queue import Queue
from loaded_mp.datapath.slices import ask_for_short_slices
from loaded_mp.datapath.system import now_us, send

_QUEUE_LENGTH = 65_536


@compiled
def _accept(descriptor: int, queue: int, batch: Batch) -> None:
    address = batch.buffer.ctypes.data
    while True:
        count = next_batch(descriptor, batch, now_us(batch.clock))
        verdicts = 0
        for i in range(count):
            at = batch.vectors_in[i, 0] - address
            queued = read_message(batch.buffer, batch.halves, at, batch.messages[i, 7] & 0xFFFFFFFF)
            if queued.packet_id == 0:
                continue
            length = write_verdict(batch.buffer, batch.halves, queued, queue, NF_ACCEPT, False, 0)
            batch.vectors_out[verdicts, 0] = address + queued.start - VERDICT_HEADER
            batch.vectors_out[verdicts, 1] = length
            verdicts += 1
        if verdicts:
            batch.message_out[3] = verdicts
            send(descriptor, batch.message_out)


def main(queues: int) -> None:
    """Serve the queues 0 to queues-1, one process each, until killed."""
    ask_for_short_slices()
    opened = [Queue(number, _QUEUE_LENGTH) for number in range(queues)]
    context = multiprocessing.get_context("fork")
    for queue in opened:
        context.Process(
            target=_accept, args=(queue.descriptor, queue.number, new_batch()), daemon=True
        ).start()
    for process in multiprocessing.active_children():
        process.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
