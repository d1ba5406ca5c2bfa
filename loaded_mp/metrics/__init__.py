"""What the daemon says of itself, as Prometheus samples, and where they are served."""
