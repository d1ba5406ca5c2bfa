"""Bringing over what other balancers are configured by: one file for each kind of files."""

from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.importing import ipvsadm
from loaded_mp.importing.found import Found, Reader
from loaded_mp.importing.haproxy import reader as haproxy
from loaded_mp.importing.keepalived import reader as keepalived

READERS: tuple[Reader, ...] = (ipvsadm.READER, haproxy.READER, keepalived.READER)


def found_in(text: str, name: str) -> Found:
    """What the text of the file `name` says, of whichever kind it is. Raises ConfigError if it is of none."""
    reader = next((each for each in READERS if each.knows(text)), None)
    if reader is None:
        kinds = ", ".join(each.name for each in READERS)
        raise ConfigError(Mistake(name, "", f"is none of these: {kinds}"))
    return reader.read(text, name)
