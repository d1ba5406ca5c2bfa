"""Marks: what a worker tells the kernel's rules of a packet, and conntrack keeps of its connection.

The upper half says that a mark is ours. None has the bits 0x4000 and 0x8000, which are Kubernetes' own.
"""

from loaded_mp.memory.snapshot import MAX_BACKENDS

#: In the upper half of every mark of ours.
OURS, OURS_MASK = 0x4C4D_0000, 0xFFFF_0000
#: The backend whose id is added translates this connection: the kernel's NAT goes on.
BACKEND, BACKEND_MASK = OURS, 0xFFFF_E000
#: A worker gave this connection to a backend; it came by the VIP whose id is added.
VIP, VIP_MASK = OURS + MAX_BACKENDS, 0xFFFF_F000
#: No connection keeps it. The packet came from the clients' side with an address of the backends' networks.
MISPLACED = 0x4C4E_0000
#: Nor this one. The packet is answered with a TCP reset or an ICMP error.
REJECTED = 0x4C4F_0000
#: Nor this one. The packet carries another one to a backend.
TUNNEL = 0x4C50_0000
#: Nor this one: a reply that the fast path forwards. Where it leaves, it has LEAVES with the id of its VIP.
LEAVING = 0x4C51_0000
#: What of the connection's mark takes the place of what in LEAVING: VIP's lower half.
LEAVING_MASK = 0x2FFF
LEAVES, LEAVES_MASK = LEAVING + MAX_BACKENDS, VIP_MASK

WHOLE_MASK = 0xFFFF_FFFF


def matched(mark: int, mask: int) -> str:
    """A mark and its mask as iptables' matches and targets take them."""
    return f"{mark:#x}" if mask == WHOLE_MASK else f"{mark:#x}/{mask:#x}"
