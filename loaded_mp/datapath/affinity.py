"""Which flow a packet belongs to: the only place that knows what a flow is made of."""

import numpy as np

from loaded_mp.compiled import compiled
from loaded_mp.datapath.lookup import Ends
from loaded_mp.datapath.work import Work
from loaded_mp.flows.flow import Flow, flow_of


@compiled
def client_flow(work: Work, service: int, ends: Ends) -> Flow:
    """The flow of a client, as the affinity of a service has it."""
    return flow_of(work.table.secret, np.uint64(service), ends.client)
