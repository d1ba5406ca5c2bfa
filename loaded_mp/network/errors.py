"""The one error of this room."""


class NetworkError(Exception):
    """The host could not be set up; the text says which command, what the kernel said, what to do."""
