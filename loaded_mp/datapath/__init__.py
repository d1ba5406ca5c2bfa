"""From a batch of queued packets to a batch of verdicts: the one compiled loop."""
