"""Locality-based least connection: a VIP keeps its backend, as for caches, for services of many VIPs.

It gets the backend with the fewest open flows for its weight (wlc), and another one when that is down, or has
more flows than its weight while another one has fewer than half of its own: weights are what backends can
carry here. So does LVS (net/netfilter/ipvs/ip_vs_lblc.c); there a backend that is full keeps its VIPs. A VIP
that nobody asked for in a day is forgotten, or sooner where the flow table has no room for it.
"""

from loaded_mp.memory.snapshot import Pick
from loaded_mp.schedulers.rr import each_once
from loaded_mp.schedulers.scheduler import Scheduler

SCHEDULER = Scheduler(each_once, Pick.LOCAL)
