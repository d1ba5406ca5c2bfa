"""Where the control socket is."""

#: An abstract Unix socket (unix(7)): it belongs to a network namespace, as the daemon does, and is gone with
#: its process. Whoever has bound it is the one daemon of the namespace.
CONTROL_ADDRESS = "\0loaded-mp"
#: How long one command may take, in seconds.
TIMEOUT_S = 10.0
#: Who may ask: root. Connections of others are closed unread.
ALLOWED_USER = 0
