"""Finding machines that serve: those that answer an echo to all, and pass the checks, join a service."""
