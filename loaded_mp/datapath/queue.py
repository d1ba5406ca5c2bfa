"""Opening a netfilter queue so that the loop can read it.

netfilterqueue binds the queue. What it does not know (packets at full length, unsegmented packets, a long
queue) is set by messages of our own over the same socket; layouts as in
include/uapi/linux/netfilter/nfnetlink_queue.h, numbers inside attributes in network byte order.
"""

import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from netfilterqueue import COPY_PACKET, NetfilterQueue

_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_MSG_CONFIG = 3 << 8 | 2  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG
_CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 2, 3, 4, 5
_CFG_F_GSO = 4
_COPY_RANGE = 0xFFFF
_SOL_SOCKET_SNDBUFFORCE, _SOL_SOCKET_RCVBUFFORCE = 32, 33  # include/uapi/asm-generic/socket.h

_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5  # include/linux/socket.h, include/uapi/linux/netlink.h

#: Memory that the kernel takes for a small waiting packet, by measurement, in bytes.
_BYTES_PER_PACKET = 1_280
#: Room for long packets: 20 ms of what a worker forwards of them.
_MIN_RECEIVE_BUFFER = 16 << 20
_MAX_RECEIVE_BUFFER = 128 << 20
_SEND_BUFFER = 4 << 20
#: How long a read waits for a packet, in microseconds.
_RECEIVE_TIMEOUT_US = 100_000
_ANSWER_TIMEOUT_S = 5


class QueueError(Exception):
    """A queue cannot be opened; the message says why and what to do."""


class Queue:
    """A bound queue. It stays bound as long as any process holds its descriptor."""

    def __init__(self, number: int, length: int) -> None:
        """Bind queue `number` with room for `length` packets. Raises QueueError."""
        self.number = number
        bound: Any = NetfilterQueue()
        try:
            bound.bind(number, _never_called, mode=COPY_PACKET, max_len=length)
        except OSError as error:
            raise QueueError(
                f"queue {number} cannot be bound: another program has it (see"
                " /proc/net/netfilter/nfnetlink_queue: first column the queue, second the process),"
                " CAP_NET_ADMIN is missing, or the kernel lacks NFQUEUE"
            ) from error
        self.descriptor: int = bound.get_fd()
        self._let_go: Callable[[], object] = bound.unbind
        with socket.socket(fileno=os.dup(self.descriptor)) as connection:
            self._configure(connection, length)

    def close(self) -> None:
        """Let go of the queue in this process."""
        self._let_go()

    @classmethod
    def inherited(cls, number: int, descriptor: int) -> Self:
        """A queue that another process has bound; it is served by this socket as before."""
        queue = cls.__new__(cls)
        queue.number, queue.descriptor = number, descriptor
        queue._let_go = partial(os.close, descriptor)
        return queue

    def take_whole(self, whole: bool) -> None:
        """Whether packets that the kernel has joined (GSO) come whole, or each as it was on the wire.

        Whoever serves the queue reads its socket, so no answer is asked for.
        """
        with socket.socket(fileno=os.dup(self.descriptor)) as connection:
            self._send(connection, _whole(whole))

    def _configure(self, connection: socket.socket, length: int) -> None:
        receive_buffer = min(max(length * _BYTES_PER_PACKET, _MIN_RECEIVE_BUFFER), _MAX_RECEIVE_BUFFER)
        connection.setsockopt(socket.SOL_SOCKET, _SOL_SOCKET_RCVBUFFORCE, receive_buffer)
        connection.setsockopt(socket.SOL_SOCKET, _SOL_SOCKET_SNDBUFFORCE, _SEND_BUFFER)
        # Or a full buffer would take nothing more until all of it has been read.
        connection.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        connection.settimeout(_ANSWER_TIMEOUT_S)
        attributes = (
            _attribute(_CFG_PARAMS, struct.pack("!IB", _COPY_RANGE, COPY_PACKET))
            + _attribute(_CFG_QUEUE_MAXLEN, struct.pack("!I", length))
            + _whole(True)
        )
        self._send(connection, attributes, _NLM_F_ACK)
        while True:
            answer = connection.recv(1 << 16)
            _, kind = struct.unpack_from("=IH", answer)
            if kind == _NLMSG_ERROR:
                (status,) = struct.unpack_from("=i", answer, 16)
                if status:
                    raise QueueError(f"queue {self.number} cannot be configured: {os.strerror(-status)}")
                break
        connection.setblocking(True)
        timeout = struct.pack("@ll", 0, _RECEIVE_TIMEOUT_US)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def _send(self, connection: socket.socket, attributes: bytes, flags: int = 0) -> None:
        header = struct.pack(
            "=IHHIIBBH",
            20 + len(attributes),
            _MSG_CONFIG,
            _NLM_F_REQUEST | flags,
            0,
            0,
            socket.AF_UNSPEC,
            0,
            socket.htons(self.number),
        )
        connection.sendto(header + attributes, (0, 0))


def _whole(whole: bool) -> bytes:
    """Whether packets that the kernel has joined (GSO) come whole."""
    return _attribute(_CFG_FLAGS, struct.pack("!I", _CFG_F_GSO if whole else 0)) + _attribute(
        _CFG_MASK, struct.pack("!I", _CFG_F_GSO)
    )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _never_called(_: object) -> None:
    raise AssertionError("the loop reads this queue")
