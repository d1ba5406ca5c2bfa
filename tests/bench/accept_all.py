"""The least that a queue can be used for: accept every packet unread. What this costs is the kernel's part.

python tests/bench/accept_all.py QUEUES
"""

import multiprocessing
import sys

from loaded_mp.compiled import compiled
from loaded_mp.datapath.loop import Batch, message, new_batch, next_batch, put_out, send_out
from loaded_mp.datapath.messages import NF_ACCEPT, VERDICT_HEADER, Decision, write_verdict
from loaded_mp.datapath.queue import Queue
from loaded_mp.datapath.slices import ask_for_short_slices
from loaded_mp.datapath.system import now_us
from loaded_mp.packet.reasons import Reason

_QUEUE_LENGTH = 65_536


@compiled
def _accept(batch: Batch) -> None:
    while True:
        count = next_batch(batch, now_us(batch.clock))
        verdicts = 0
        for i in range(count):
            queued = message(batch, i)
            if queued.packet_id == 0:
                continue
            decision = Decision(NF_ACCEPT, False, 0, 0, Reason.OK)
            length = write_verdict(batch.buffer, batch.shorts, queued, batch.queue, decision)
            put_out(batch, verdicts, queued.start - VERDICT_HEADER, length)
            verdicts += 1
        if verdicts:
            send_out(batch, 0, verdicts)


def main(queues: int) -> None:
    """Serve the queues 0 to queues-1, one process each, until killed."""
    ask_for_short_slices()
    opened = [Queue(number, _QUEUE_LENGTH) for number in range(queues)]
    context = multiprocessing.get_context("fork")
    for queue in opened:
        batch = new_batch(queue.descriptor, queue.number)
        context.Process(target=_accept, args=(batch,), daemon=True).start()
    for process in multiprocessing.active_children():
        process.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
