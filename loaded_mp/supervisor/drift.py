"""What others take away of the network set-up is put back, and said."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from loaded_mp.log import event
from loaded_mp.network import setup
from loaded_mp.network.announce import announce
from loaded_mp.network.changes import AddAddress, Change
from loaded_mp.network.errors import NetworkError
from loaded_mp.network.news import News, glance
from loaded_mp.network.presence import Look, Presence
from loaded_mp.supervisor.aside import aside

log = logging.getLogger(__name__)

#: How often that is looked at of which nothing tells.
_GLANCE_S = 0.75
#: Others make several changes in a row (a firewall that loads its rules): they are looked at together.
_SETTLE_S = 0.1
#: Between two looks, so that busy machines and fights take little of a core.
_PAUSE_S = 0.2
_FIGHT_PAUSE_S = 1.0
#: What could not be put back is tried again after this time, even if nothing is told.
_RETRY_S = 5.0
#: A glance does not show a rule of iptables-legacy in the place of another one of its size.
_LOOK_S = 30.0
#: So many mends within that time are a fight with another program.
FIGHT_MENDS = 10
_FIGHT_S = 60.0
#: When a VIP is announced after it has come to be here. keepalived: five times at once and after 5 s.
_ANNOUNCED_AFTER_S = (0.0, 1.0, 5.0)


class Drift:
    """Watches over the changes that were made to this machine, and announces VIPs that have come to be here.

    Whoever makes changes holds `lock` meanwhile, and then says which are wanted from now on.
    """

    def __init__(self, wanted: Sequence[Change] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.wanted = tuple(wanted)
        self.lock = asyncio.Lock()
        self.mends = 0  #: how often something was put back
        self._clock = clock
        self._woken = asyncio.Event()
        self._told = False  #: netlink has
        self._presence = Presence()
        self._away: frozenset[str] = frozenset()
        self._trouble = ""
        self._mends_s: deque[float] = deque(maxlen=FIGHT_MENDS)
        self._fighting = False
        self._here: frozenset[tuple[AddAddress, int]] = frozenset()

    async def run(self) -> None:
        """Put back what is missing, until cancelled."""
        try:
            with News() as news:
                while True:
                    news.clear(self.wanted)
                    async with self.lock:
                        seen = glance(self.wanted)
                        await self._mend()
                    await asyncio.sleep(_FIGHT_PAUSE_S if self._fighting else _PAUSE_S)
                    await self._wait(news, seen)
        finally:
            self._here = frozenset()  # what is still to be announced is not

    async def _wait(self, news: News, seen: tuple[object, ...]) -> None:
        """Wait until something has changed since `seen`."""
        loop = asyncio.get_running_loop()
        self._told = False
        for each in news.sockets:
            loop.add_reader(each, self._tell)
        due_s = self._clock() + (_RETRY_S if self._trouble else _LOOK_S)
        try:
            while not (self._told or self._clock() > due_s or glance(self.wanted) != seen):
                self._woken.clear()
                timer = loop.call_later(_GLANCE_S, self._woken.set)
                await self._woken.wait()
                timer.cancel()
        finally:
            # Until the next look it need not be heard again and again.
            for each in news.sockets:
                loop.remove_reader(each)
        if self._told:
            await asyncio.sleep(_SETTLE_S)

    def _tell(self) -> None:
        self._told = True
        self._woken.set()

    async def _mend(self) -> None:
        """Look, and put back what is missing."""
        missing = "unknown"
        try:
            look = await aside(lambda: self._presence.look(self.wanted))
            self._say_who_is_away(look)
            missing = ", ".join(look.lost.values())
            self._here &= look.announceable
            if look.lost:
                await aside(lambda: setup.restore(look.lost))
                self._mended(missing)
                look = await aside(lambda: self._presence.look(self.wanted))
            self._announce(look.announceable)
            self._trouble = ""
        except (NetworkError, OSError) as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.error(event("drift-stays", missing=missing, cause=self._trouble, again_in_s=_RETRY_S))

    def _say_who_is_away(self, look: Look) -> None:
        for name in sorted(look.away - self._away):
            log.warning(
                event(
                    "interface-away",
                    interface=name,
                    effect="what is on it comes back when it is there and up",
                )
            )
        for name in sorted(self._away - look.away):
            log.info(event("interface-back", interface=name))
        self._away = look.away

    def _mended(self, missing: str) -> None:
        """Count and say what was put back; of a fight only that it is one."""
        now_s = self._clock()
        self.mends += 1
        if self._mends_s and now_s - self._mends_s[-1] > _FIGHT_S:
            self._fighting = False
        self._mends_s.append(now_s)
        if self._fighting:
            return
        log.warning(event("drift-mended", missing=missing))
        if len(self._mends_s) == FIGHT_MENDS and now_s - self._mends_s[0] <= _FIGHT_S:
            self._fighting = True
            log.error(
                event(
                    "drift-fight",
                    missing=missing,
                    cause=f"another program has taken it away {FIGHT_MENDS} times within {_FIGHT_S:g} s",
                    effect="it is put back each time, and no longer said until it has stayed for that long",
                )
            )

    def _announce(self, here: frozenset[tuple[AddAddress, int]]) -> None:
        """Announce those that were not here before, or not with this carrier, now and again."""
        loop = asyncio.get_running_loop()
        new = here - self._here
        self._here = here
        for place in new:
            change, _ = place
            log.info(event("vip-announced", vip=change.address.ip, interface=change.link))
            for delay_s in _ANNOUNCED_AFTER_S:
                loop.call_later(delay_s, self._announce_once, place)

    def _announce_once(self, place: tuple[AddAddress, int]) -> None:
        change, _ = place
        if place not in self._here:
            return
        try:
            announce(change.link, change.address.ip)
        except OSError as error:
            log.warning(
                event(
                    "vip-not-announced",
                    vip=change.address.ip,
                    interface=change.link,
                    cause=error.strerror,
                    effect="neighbours may send to the machine that had it before",
                )
            )
