"""What the daemon says of itself, as Prometheus samples."""
