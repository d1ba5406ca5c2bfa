"""Trying the operator's own schedulers before they are taken over."""

import asyncio

from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.model import Config, Service
from loaded_mp.own_scheduler.asking import BackendSeen, CheckSeen, SchedulerError, ask
from loaded_mp.schedulers import is_own

#: Processes at the same moment.
_MOST = 4


def try_schedulers(config: Config) -> None:
    """Ask each once, with the backends of each family as they are configured, all up and without flows.

    To be called where no event loop runs. Raises ConfigError.
    """
    own = [service for service in config.services if is_own(service.scheduler)]
    if own and (mistakes := asyncio.run(_tried(own))):
        raise ConfigError(*mistakes)


async def _tried(services: list[Service]) -> list[Mistake]:
    room = asyncio.Semaphore(_MOST)

    async def mistake(service: Service, family: int) -> Mistake | None:
        async with room:
            try:
                await ask(
                    service.scheduler, service.scheduler_user, _backends(service, family), service.table_size
                )
            except SchedulerError as error:
                return Mistake(error.place, f"scheduler of {service.name}", str(error))
        return None

    families = [
        (service, family) for service in services for family in sorted({vip.version for vip in service.vips})
    ]
    found = await asyncio.gather(*(mistake(*each) for each in families))
    return list(dict.fromkeys(each for each in found if each))


def _backends(service: Service, family: int) -> list[BackendSeen]:
    mine = [each for each in service.backends if each.address.version == family]
    serve = [each for each in mine if not each.backup and each.weight] or mine
    return [
        BackendSeen(
            name=each.name or str(each.address),
            address=str(each.address),
            weight=each.weight if each in serve else 0,
            configured_weight=each.weight,
            backup=each.backup,
            up=True,
            flows=0,
            rates={},
            checks=tuple(CheckSeen(str(check), None, "not checked yet", None) for check in service.checks),
        )
        for each in mine
    ]
