"""The packet path in the kernel: what a worker has decided is repeated there, without a queue."""
