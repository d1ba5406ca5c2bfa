"""The kernel's table of connections, by netlink."""

from concurrent.futures import ThreadPoolExecutor

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError

from loaded_mp.network.errors import NetworkError

_WHOLE_MARK = 0xFFFF_FFFF


def forget_connections(mark: int) -> None:
    """Delete all connections with this mark. Raises NetworkError if the kernel refuses."""

    def flush() -> None:
        with NFCTSocket() as connections:
            connections.flush(mark=mark, mark_mask=_WHOLE_MARK)

    try:
        # In a thread, as pyroute2 runs an event loop of its own; it ends with the call.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(flush).result()
    except NetlinkError as error:
        raise NetworkError(
            f"connections with mark {mark:#x} cannot be deleted: {error.args[-1]};"
            " the kernel module nf_conntrack_netlink may be missing"
        ) from error
