"""What was added and removed while the daemon runs, kept beside what the configuration says."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from loaded_mp.config.contradictions import contradictions, misfits
from loaded_mp.config.model import Backend, Config, Service
from loaded_mp.fields import Endpoint, addresses_of
from loaded_mp.services import BackendKey


class MisfitError(Exception):
    """A backend cannot be added or removed so; the text says why."""


@dataclass(frozen=True)
class Overlay:
    """A removed backend is one of the configuration; one that was added is not."""

    added: dict[BackendKey, Backend] = field(default_factory=dict)
    removed: frozenset[BackendKey] = frozenset()

    def over(self, config: Config) -> Config:
        """The configuration with what was added and without what was removed.

        What does not fit it any more is passed over: the configuration wins.
        """
        vips = [addresses_of(vip) for service in config.services for vip in service.vips]
        services = []
        for service in config.services:
            stay = [each for each in service.backends if (service.name, each.address) not in self.removed]
            added = [
                backend
                for (name, endpoint), backend in self.added.items()
                if name == service.name
                and not any(endpoint.ip in vip for vip in vips)
                and endpoint.version in _families(service)
            ]
            new = ((each, each.address) for each in (*stay, *added))
            unfit = [backend for backend, _ in misfits(service.listen, service.forwarding, new)]
            added = [each for each in added if each not in unfit]
            if {each.address.version for each in (*stay, *added)} < _served(service):
                stay, added = list(service.backends), []
            services.append(service.model_copy(update={"backends": (*stay, *added)}))
        return config.model_copy(update={"services": tuple(services)})

    def beside(self, config: Config) -> Self:
        """What stays of this when a configuration is read: what was added and is not in it."""
        names = {each.name for each in config.services}
        listed = {(each.name, backend.address) for each in config.services for backend in each.backends}
        added = {key: each for key, each in self.added.items() if key[0] in names and key not in listed}
        return type(self)(added)

    def adding(self, name: str, backend: Backend) -> Self:
        """This with a backend of the service `name`."""
        key = name, backend.address
        # One that was removed comes back as it is wanted now, which need not be as the configuration has it.
        return type(self)({**self.added, key: backend}, self.removed)

    def removing(self, name: str, endpoint: Endpoint) -> Self:
        """This without a backend of the service `name`."""
        key = name, endpoint
        added = {each: backend for each, backend in self.added.items() if each != key}
        return type(self)(added, self.removed if key in self.added else self.removed | {key})


def with_backend(config: Config, name: str, backend: Backend) -> Config:
    """The configuration with one more backend of the service `name`. Raises MisfitError."""
    service = _named(config, name)
    return _with(config, service, (*service.backends, backend))


def without_backend(config: Config, name: str, endpoint: Endpoint) -> Config:
    """The configuration without a backend of the service `name`. Raises MisfitError."""
    service = _named(config, name)
    stay = tuple(each for each in service.backends if each.address != endpoint)
    if len(stay) == len(service.backends):
        raise MisfitError(f"service {name!r} has no backend {endpoint}")
    if not {each.address.version for each in stay} >= _served(service):
        raise MisfitError(
            f"{endpoint} is the last IPv{endpoint.version} backend of service {name!r}: add another one first"
        )
    return _with(config, service, stay)


def _named(config: Config, name: str) -> Service:
    for service in config.services:
        if service.name == name:
            return service
    there = ", ".join(each.name for each in config.services)
    raise MisfitError(f"there is no service {name!r}; there are: {there}")


def _with(config: Config, service: Service, backends: Iterable[Backend]) -> Config:
    changed = service.model_copy(update={"backends": tuple(backends)})
    services = tuple(changed if each is service else each for each in config.services)
    config = config.model_copy(update={"services": services})
    said = config.model_dump(
        mode="json",
        include={
            "network": True,
            "services": {
                "__all__": {"name", "vips", "listen", "forwarding", "checks", "discovery", "backends"}
            },
        },
    )
    for _, text in contradictions(said):
        raise MisfitError(text)
    return config


def _families(service: Service) -> set[int]:
    return {vip.version for vip in service.vips}


def _served(service: Service) -> set[int]:
    """The families in which there has to be a backend; where they are discovered, they may be away."""
    return set() if service.discovery else _families(service)
