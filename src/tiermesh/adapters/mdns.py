"""Discovery over multicast DNS (RFC 6762, RFC 6763): this node's record out, sightings of others in.

A sighting is a hint that a peer may be there. Removals and expiries are not passed on: they prove nothing. Instance
names are node ids, 128 random bits, so registration skips the probing wait (RFC 6762 section 8.1), which takes
announce-to-seen from over a second to milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from tiermesh.adapters.background import Background
from tiermesh.adapters.interfaces import Interface
from tiermesh.adapters.passport import checked_node_id, checked_session
from tiermesh.config.address import join_address
from tiermesh.types import Contact, NodeId, SessionId, Tier

log = logging.getLogger(__name__)

TXT_LIMIT_BYTES = 1300
"""One Ethernet frame holds the whole record; a fragmented multicast is lost whole when any part is."""

RESOLVE_TIMEOUT_MS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a node announces of itself; it must stay true for anybody on the network to read."""

    node_id: NodeId
    session: SessionId
    cluster: str
    name: str
    port: int
    protocol: int
    tier: Tier | None
    models: tuple[str, ...]
    capabilities: tuple[str, ...]

    def txt(self) -> dict[str, str]:
        """The TXT strings, under `TXT_LIMIT_BYTES`: model names are left out from the end until it fits."""
        txt = {
            "id": self.node_id,
            "session": self.session,
            "cluster": self.cluster,
            "name": self.name[:63],
            "proto": str(self.protocol),
            "tier": "" if self.tier is None else str(self.tier),
            "caps": ",".join(self.capabilities),
        }
        room = TXT_LIMIT_BYTES - sum(len(k) + len(v.encode()) + 2 for k, v in txt.items())
        return txt | {"models": _fitting(self.models, min(room, 255) - len("models=") - 1)}


@dataclass(frozen=True, slots=True)
class Sighting:
    """Somebody of our cluster was announced."""

    contact: Contact
    session: SessionId


class Mdns:
    """Announces one record and watches for others of the same cluster."""

    def __init__(
        self, *, service: str, interfaces: tuple[Interface, ...], on_sighting: Callable[[Sighting], None]
    ) -> None:
        self._service = service
        self._interfaces = interfaces
        self._on_sighting = on_sighting
        self._record: Record | None = None
        self._info: AsyncServiceInfo | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._background = Background()
        self._busy = asyncio.Lock()
        """Registering and updating take several steps, and zeroconf does not like them mixed."""

    async def open(self, record: Record) -> None:
        """Start to announce and to watch. Raises `OSError` when multicast is impossible here."""
        async with self._busy:
            await self._open(record)

    async def announce(self, record: Record | None = None) -> None:
        """Announce again, with another record if one is given. Does nothing before `open` and after `close`."""
        async with self._busy:
            if self._zeroconf is not None and self._record is not None:
                self._record = record or self._record
                self._info = self._make_info(self._record)
                await self._broadcast(self._zeroconf.async_update_service(self._info))

    async def rescan(self, interfaces: tuple[Interface, ...]) -> None:
        """The machine's addresses changed: use these from now on, and announce on them."""
        self._interfaces = interfaces
        if self._zeroconf is None:
            return
        choice, version = _multicast(interfaces)
        await self._zeroconf.async_update_interfaces(interfaces=choice, ip_version=version)
        await self.announce()

    async def close(self) -> None:
        """Say goodbye and stop."""
        await self._background.close()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            if self._info is not None:
                with contextlib.suppress(KeyError):
                    await (await self._zeroconf.async_unregister_service(self._info))
            await self._zeroconf.async_close()
        self._browser = self._zeroconf = self._info = None

    async def _open(self, record: Record) -> None:
        self._record = record
        choice, version = _multicast(self._interfaces)
        self._zeroconf = zeroconf = AsyncZeroconf(interfaces=choice, ip_version=version)
        await zeroconf.zeroconf.async_wait_for_start()
        self._info = self._make_info(record)
        await self._broadcast(zeroconf.async_register_service(self._info, cooperating_responders=True, strict=False))
        self._browser = AsyncServiceBrowser(zeroconf.zeroconf, self._service, handlers=[self._changed])

    def _make_info(self, record: Record) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            self._service,
            f"{record.node_id}.{self._service}",
            port=record.port,
            properties=dict(record.txt()),
            server=f"{record.node_id}.local.",
            parsed_addresses=[str(i.ip) for i in self._interfaces],
        )

    async def _broadcast(self, registering: object) -> None:
        """Announcements are repeated for a second or so; that goes on in the background."""
        repeated = await registering  # type: ignore[misc]
        self._background.start(_quietly(repeated))

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            return
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._sighted(info)
        else:
            self._background.start(self._resolve(zeroconf, info))

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        if await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
            self._sighted(info)

    def _sighted(self, info: AsyncServiceInfo) -> None:
        assert self._record is not None
        txt = info.decoded_properties
        if txt.get("cluster") != self._record.cluster or not info.port:
            return
        try:
            node_id, session = checked_node_id(txt.get("id") or ""), checked_session(txt.get("session") or "")
        except ValueError as error:
            log.debug("ignored the mDNS record %r: %s", info.name, error)
            return
        addresses = tuple(join_address(ip, info.port) for ip in info.parsed_addresses())
        if addresses and session != self._record.session:
            self._on_sighting(Sighting(Contact(addresses, node_id), session))


async def _quietly(repeated: object) -> None:
    """An announcement that can't be sent (no route, interface gone) is tried again by the next one."""
    try:
        await repeated  # type: ignore[misc]
    except OSError as error:
        log.debug("mDNS announcement failed: %s", error)


def _multicast(interfaces: tuple[Interface, ...]) -> tuple[list[str], IPVersion]:
    """Loopback has no IPv6 multicast route on common systems, so `::1` is announced but not multicast on."""
    v4 = [str(i.ip) for i in interfaces if i.ip.version == 4]
    v6 = [str(i.ip) for i in interfaces if i.ip.version == 6 and not i.ip.is_loopback]
    if v4 and v6:
        return v4 + v6, IPVersion.All
    return (v6, IPVersion.V6Only) if v6 else (v4, IPVersion.V4Only)


def _fitting(names: tuple[str, ...], size_bytes: int) -> str:
    text = ",".join(names)
    while len(text.encode()) > size_bytes:
        names = names[:-1]
        text = ",".join(names)
    return text
