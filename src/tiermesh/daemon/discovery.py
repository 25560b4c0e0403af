"""Being found and finding: the mDNS record kept true, sightings passed on, and changes of address noticed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from tiermesh.adapters.background import Background
from tiermesh.adapters.interfaces import Interface, choose
from tiermesh.adapters.mdns import Mdns, Record, Sighting
from tiermesh.errors import InvalidConfig

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Reading the addresses takes a millisecond; a person who changes networks waits longer than this anyway."""


class Discovery:
    """Announces what `record` gives; calls `on_sighting` for each peer, `on_moved` for each new set of addresses.

    `service` None means no mDNS at all: only the addresses are watched.
    """

    def __init__(
        self,
        *,
        service: str | None,
        wanted: str | None,
        interfaces: tuple[Interface, ...],
        record: Callable[[], Record],
        on_sighting: Callable[[Sighting], None],
        on_moved: Callable[[tuple[Interface, ...]], None],
    ) -> None:
        self._wanted = wanted
        self._interfaces = interfaces
        self._record = record
        self._announced: Record | None = None
        self._on_moved = on_moved
        self._mdns = Mdns(service=service, interfaces=interfaces, on_sighting=on_sighting) if service else None
        self._background = Background()

    async def open(self) -> str | None:
        """Start; gives the reason when mDNS does not work here, which is no reason not to run."""
        self._background.start(self._run_watch())
        if self._mdns is None:
            return "switched off by discovery.method: explicit"
        self._announced = self._record()
        try:
            await self._mdns.open(self._announced)
        except OSError as error:
            log.warning("mDNS does not work here (%s): other nodes need --join or their address book", error)
            self._mdns = None
            return f"mDNS does not work here: {error}"
        return None

    def announce(self, *, anew: bool = True) -> None:
        """Announce the record; with `anew` False only when it has changed."""
        record = self._record()
        if self._mdns is not None and (anew or record != self._announced):
            self._announced = record
            self._background.start(self._mdns.announce(record))

    async def close(self) -> None:
        """Say goodbye."""
        await self._background.close()
        if self._mdns is not None:
            await self._mdns.close()

    async def _run_watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(InvalidConfig, OSError):  # the wanted interface may be gone for a while
                found = await asyncio.to_thread(choose, self._wanted)
                if found and set(found) != set(self._interfaces):
                    await self._move(found)

    async def _move(self, found: tuple[Interface, ...]) -> None:
        log.info("this machine's addresses changed: %s", ", ".join(str(i.ip) for i in found))
        self._interfaces = found
        self._on_moved(found)
        if self._mdns is not None:
            await self._mdns.rescan(found)
            self.announce()
