"""The Unix socket by which commands talk to a running daemon: HTTP and JSON, one method per command."""
