"""Whom workers run as where the configuration does not say."""

import pwd

#: A user of the workers alone: no other program may end them.
OWN_USER = "loaded-mp"
SHARED_USER = "nobody"


def default_user() -> str:
    """The user loaded-mp where there is one, else nobody."""
    try:
        return pwd.getpwnam(OWN_USER).pw_name
    except KeyError:
        return SHARED_USER
