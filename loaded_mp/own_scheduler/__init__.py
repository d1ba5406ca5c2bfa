"""A scheduler of the operator's own: a Python file, asked in a process of its own."""
