"""The daemon's life: what runs, what workers read, what happens when something changes. It alone decides."""
