"""Who writes the addresses, and how: one file for each way of forwarding."""

from loaded_mp.forwarding.conntrack import Conntrack
from loaded_mp.forwarding.forwarding import Forwarding
from loaded_mp.forwarding.rewrite import Rewrite

#: By name in a configuration.
FORWARDINGS: dict[str, Forwarding] = {"rewrite": Rewrite(), "conntrack": Conntrack()}
