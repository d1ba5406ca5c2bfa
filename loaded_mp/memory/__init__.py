"""What workers and supervisor share: segments, the service snapshot, counters."""
