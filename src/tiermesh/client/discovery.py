"""Find a node by multicast DNS: the first one announced that also answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

import aiohttp
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from tiermesh.errors import Unavailable

T = TypeVar("T")

SERVICE = "_tiermesh._tcp.local."
RESOLVE_TIMEOUT_MS = 1500
ANSWER_S = 2.0
"""An address that takes longer is a wrong one: another of the node's, or another node, will do."""


async def find_url(cluster: str | None, interface: str | None, search_s: float) -> str:
    """The URL of a node of `cluster` (None: of any). Raises `Unavailable` when none answered within `search_s`."""
    zeroconf = AsyncZeroconf(
        interfaces=InterfaceChoice.All if interface is None else [interface],
        ip_version=IPVersion.V6Only if interface and ":" in interface else IPVersion.V4Only,
    )
    try:
        async with asyncio.timeout(search_s):
            return await _search(zeroconf, cluster)
    except TimeoutError:
        where = f"of cluster {cluster!r} " if cluster else ""
        raise Unavailable(
            f"mDNS found no node {where}within {search_s:g} s. Is `mesh up` running? Otherwise name a node's URL"
        ) from None
    finally:
        await zeroconf.async_close()


async def _search(zeroconf: AsyncZeroconf, cluster: str | None) -> str:
    """Browse until a node of the cluster has answered."""
    sightings: asyncio.Queue[AsyncServiceInfo] = asyncio.Queue()
    resolving: set[asyncio.Task[None]] = set()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed:
            info = AsyncServiceInfo(service_type, name)
            resolving.add(asyncio.ensure_future(_resolve(zeroconf, info, sightings)))

    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
    try:
        return await _first_answer(sightings, cluster)
    finally:
        await browser.async_cancel()
        await _ended(resolving)


async def _resolve(zeroconf: Zeroconf, info: AsyncServiceInfo, sightings: asyncio.Queue[AsyncServiceInfo]) -> None:
    if info.load_from_cache(zeroconf) or await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
        sightings.put_nowait(info)


async def _first_answer(sightings: asyncio.Queue[AsyncServiceInfo], cluster: str | None) -> str:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as http:
        while True:
            info = await sightings.get()
            if cluster in (None, info.decoded_properties.get("cluster")):
                url = await _answering(http, info)
                if url is not None:
                    return url


async def _answering(http: aiohttp.ClientSession, info: AsyncServiceInfo) -> str | None:
    """The URL at which the announced node itself answers first; all its addresses are tried at once."""
    node_id = info.decoded_properties.get("id")
    hosts = [f"[{ip}]" if ":" in ip else ip for ip in info.parsed_addresses()]
    tries = {asyncio.ensure_future(_is_node(http, f"http://{host}:{info.port}", node_id)) for host in hosts}
    waiting = set(tries)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if url := next(filter(None, (one.result() for one in done)), None):
                return url
        return None
    finally:
        await _ended(tries)


async def _is_node(http: aiohttp.ClientSession, url: str, node_id: str | None) -> str | None:
    try:
        async with http.get(f"{url}/health") as response:
            body = await response.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return url if isinstance(body, dict) and body.get("node_id") == node_id else None


async def _ended(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Cancel, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
