"""loaded-mp: a load balancer for Linux that runs in userspace and keeps up with the kernel."""

__version__ = "0.1.0"
