"""Who writes the addresses, and how: one file for each way of forwarding."""

from loaded_mp.forwarding.conntrack import Conntrack
from loaded_mp.forwarding.dr import DirectRouting
from loaded_mp.forwarding.forwarding import Forwarding
from loaded_mp.forwarding.rewrite import Rewrite
from loaded_mp.forwarding.tunnel import Tunnelling

#: By name in a configuration.
FORWARDINGS: dict[str, Forwarding] = {
    "rewrite": Rewrite(),
    "conntrack": Conntrack(),
    "dr": DirectRouting(),
    "tunnel": Tunnelling(),
}
