"""Every connection that this node makes to another, and the links that others make to it.

A link is one WebSocket between two daemons; either end sends over it, whichever opened it. Links open when there is
something to say and close after `IDLE_S` of silence; the uplink to a coordinator is a link that never falls silent.
All addresses of a peer are tried at once and the first that answers with the right identity wins.

Requests travel beside the links (see peer_requests).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

import aiohttp
from aiohttp import web

from tiermesh.adapters.background import Background
from tiermesh.adapters.impatient import give_up_on_silence
from tiermesh.adapters.link import Link
from tiermesh.adapters.passport import Passport, Stamp, read_stamp
from tiermesh.adapters.peer_requests import DIAL_S, IDLE_S, UNREACHABLE, PeerRequests
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import TiermeshError
from tiermesh.types import Address, NodeId, SessionId

log = logging.getLogger(__name__)

LINK_PATH = "/mesh/v1/link"

WAITING_LIMIT = 16
"""Messages kept for one peer while its link opens; the oldest go first, and the protocol repeats what matters."""

LONGEST_MESSAGE_BYTES = 64 * 1024 * 1024
"""The full view of a thousand nodes takes a few megabytes; whoever sends more than this is cut off."""


class Events(Protocol):
    """What the owner of `Peers` is told. All calls come on the loop."""

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None: ...
    def on_lost(self, peer: NodeId, session: SessionId) -> None:
        """The last link with this run of this peer broke."""

    def on_refused(self, target: NodeId | Address, *, known: bool) -> None: ...
    def on_identified(self, address: Address, node: NodeId) -> None: ...
    def on_twin(self, session: SessionId) -> None:
        """Another daemon answers with this node's own id."""


class Peers(PeerRequests):
    """The transport of one node."""

    def __init__(self, passport: Passport, events: Events) -> None:
        super().__init__(passport)
        self._events = events
        self._links: defaultdict[NodeId, list[Link]] = defaultdict(list)
        self._waiting: dict[NodeId | Address, list[str]] = {}
        self._background = Background()
        self._told: set[str] = set()
        self._closing = False

    async def open(self) -> None:
        """Call once, on the loop, before anything else."""
        await super().open()
        self._background.start(self._run_sweeps())

    async def close(self) -> None:
        """Say goodbye on every link and end every task."""
        self._closing = True
        await asyncio.gather(*(link.close(1001) for links in self._links.values() for link in tuple(links)))
        await self._background.close()
        await super().close()

    def send(
        self,
        to: NodeId,
        addresses: tuple[Address, ...],
        payload: Mapping[str, object],
        session: SessionId | None = None,
    ) -> None:
        """Say `payload` to a known peer, over a link if there is one, else over a new one.

        `session` prefers the links of one run of the peer: two daemons may claim one id for a while.
        """
        text = json.dumps(payload, separators=(",", ":"))
        if links := self._links.get(to):
            next((x for x in links if x.stamp.session == session), links[-1]).send(text)
        elif addresses:
            self._dial(to, addresses, text)

    def reach(self, address: Address, payload: Mapping[str, object]) -> None:
        """Say `payload` to whoever answers at `address`."""
        self._dial(address, (address,), json.dumps(payload, separators=(",", ":")))

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """Serve a link that a peer opens; its stamp has been judged, and the answer gets this node's."""
        ws = web.WebSocketResponse(max_msg_size=LONGEST_MESSAGE_BYTES, compress=False)
        await ws.prepare(request)
        if request.transport is not None:
            give_up_on_silence(request.transport.get_extra_info("socket"))
        await self._serve(Link(ws, read_stamp(request.headers)))
        return ws

    def sessions(self, node: NodeId) -> frozenset[SessionId]:
        """The runs of this peer with which there are open links."""
        return frozenset(link.stamp.session for link in self._links.get(node, ()))

    def _preferred(self, node: NodeId, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
        """The address that a link with this node uses comes first: it is known to work."""
        working = [link.address for link in self._links.get(node, ()) if link.address in addresses]
        return tuple(dict.fromkeys([*(a for a in working if a), *addresses]))

    def _dial(self, target: NodeId | Address, addresses: tuple[Address, ...], text: str) -> None:
        if self._closing:
            return
        waiting = self._waiting.get(target)
        if waiting is not None:
            waiting.append(text)
            del waiting[:-WAITING_LIMIT]
            return
        self._waiting[target] = [text]
        self._background.start(self._connect(target, addresses))

    async def _connect(self, target: NodeId | Address, addresses: tuple[Address, ...]) -> None:
        """Try all addresses at once; hand what waited to the first right answer, or report a refusal by all."""
        known = target not in addresses
        refusals = 0
        attempts = [asyncio.ensure_future(self._try(address, named=not known)) for address in addresses]
        link: Link | None = None
        try:
            for attempt in asyncio.as_completed(attempts):
                opened = await attempt
                if isinstance(opened, Link):
                    if link is None and (not known or opened.stamp.node_id == target):
                        link = opened
                    else:
                        await opened.close(1000)
                    if link is not None:
                        break
                elif opened:
                    refusals += 1
        finally:
            for task in attempts:
                task.cancel()
            leftover = await asyncio.gather(*attempts, return_exceptions=True)
            texts = self._waiting.pop(target, [])
        for other in leftover:
            if isinstance(other, Link) and other is not link:
                await other.close(1000)
        if link is not None:
            for text in texts:
                link.send(text)
            await self._serve(link)
        elif refusals == len(addresses):
            self._events.on_refused(target, known=known)

    async def _try(self, address: Address, *, named: bool) -> Link | bool:
        """A link with whoever is at `address`, or whether the connection was refused.

        `named`: a person gave this address, no node did, and waits to see whether it is the right one.
        """
        assert self._http is not None, "open() comes first"
        try:
            async with asyncio.timeout(DIAL_S):
                ws = await self._http.ws_connect(
                    f"http://{address}{LINK_PATH}",
                    headers=self._passport.headers,
                    max_msg_size=LONGEST_MESSAGE_BYTES,
                )
                return await self._check(address, ws)
        except aiohttp.WSServerHandshakeError as error:
            self._turned_away(address, error)
        except UNREACHABLE as error:
            if named:
                self._tell_once(f"no node answers at {address} ({reason_of(error)}); it is tried again and again")
            return isinstance(error, aiohttp.ClientConnectorError) and isinstance(
                error.os_error, ConnectionRefusedError
            )
        return False

    async def _check(self, address: Address, ws: aiohttp.ClientWebSocketResponse) -> Link | bool:
        try:
            stamp = read_stamp(ws._response.headers)  # noqa: SLF001 - aiohttp keeps the handshake's headers here
            self._passport.judge(stamp)
        except TiermeshError as error:
            self._tell_once(f"not linking with {address}: {error}")
            await ws.close()
            return False
        self._events.on_identified(address, stamp.node_id)
        return Link(ws, stamp, address)

    def _turned_away(self, address: Address, error: aiohttp.WSServerHandshakeError) -> None:
        stamp = _stamp_of(error)
        if stamp is None:
            self._tell_once(f"{address} is no node of a mesh: it answered HTTP {error.status}")
        elif stamp.cluster != self._passport.cluster:
            self._tell_once(f"{address} is of cluster {stamp.cluster!r}, this node of {self._passport.cluster!r}")
        elif stamp.node_id == self._passport.node_id:
            self._events.on_identified(address, stamp.node_id)
            if stamp.session != self._passport.session:
                self._events.on_twin(stamp.session)
        else:
            self._tell_once(f"{address} turned this node away: {self._why_not(stamp, error.status)}")

    def _why_not(self, stamp: Stamp, status: int) -> str:
        """A refused handshake has no body: the reason is in the stamp or the status."""
        try:
            self._passport.judge(stamp)
        except TiermeshError as error:
            return str(error)
        match status:
            case 401:
                return "it demands another token; set the same MESH_TOKEN on every node of the cluster"
            case 403:
                return (
                    "without a token it serves private addresses only, and answers to its IP address or a local name; "
                    "join it by its IP address, or set MESH_TOKEN on every node"
                )
            case _:
                return f"HTTP {status}"

    async def _serve(self, link: Link) -> None:
        """Read a link until it closes; report the loss of a peer whose last link broke."""
        peer, session = link.stamp.node_id, link.stamp.session
        self._links[peer].append(link)
        try:
            async with contextlib.aclosing(link.run()) as texts:
                async for text in texts:
                    self._deliver(link, text)
        finally:
            links = self._links[peer]
            links.remove(link)
            gone = all(other.stamp.session != session for other in links)
            if not links:
                del self._links[peer]
            if gone and not link.idle_close and not self._closing:
                self._events.on_lost(peer, session)

    def _deliver(self, link: Link, text: str) -> None:
        try:
            payload = json.loads(text)
            if not isinstance(payload, dict):
                raise TypeError("not an object")
            self._events.on_message(link.stamp.node_id, link.stamp.session, payload)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self._tell_once(f"ignored a message that can't be read from node {link.stamp.node_id[:8]}: {error}")

    async def _run_sweeps(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S / 4)
            for links in tuple(self._links.values()):
                for link in tuple(links):
                    if link.idle_s() > IDLE_S:
                        link.idle_close = True
                        await link.close(1000)

    def _tell_once(self, text: str) -> None:
        """What goes wrong on every try is said on the first."""
        if text not in self._told and len(self._told) < 1000:
            self._told.add(text)
            log.warning("%s", text)


def _stamp_of(error: aiohttp.WSServerHandshakeError) -> Stamp | None:
    if error.headers is None:
        return None
    try:
        return read_stamp(error.headers)
    except TiermeshError:
        return None
