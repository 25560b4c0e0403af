"""Every connection that this node makes to another, and the links that others make to it.

A link is one WebSocket between two daemons; either end sends over it, whichever opened it. Links open when there is
something to say and close after `IDLE_S` of silence; the uplink to a coordinator is a link that never falls silent.
All addresses of a peer are tried at once and the first that answers with the right identity wins.

Prompts travel beside the links, as ordinary HTTP requests (`generate`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import aiohttp
from aiohttp import web

from tiermesh.adapters.background import Background
from tiermesh.adapters.engines import Reply
from tiermesh.adapters.link import Link
from tiermesh.adapters.passport import HEADER_PEER, Passport, Stamp, read_stamp
from tiermesh.adapters.prompt import Prompt, written
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import EngineFailed, InvalidInput, NotFound, TiermeshError, Unavailable, Unreachable
from tiermesh.protocol import headers
from tiermesh.types import Address, NodeId, SessionId

log = logging.getLogger(__name__)

LINK_PATH = "/mesh/v1/link"
GENERATE_PATH = "/mesh/v1/generate"
EMBED_PATH = "/mesh/v1/embed"
POLICY_PATH = "/mesh/v1/policy"
"""The coordinator's own door for a new policy, which never passes it on."""
DRAIN_PATH = "/mesh/v1/drain"
REMOVE_PATH = "/mesh/v1/remove"
"""A node's own door for an order to rest, and the coordinator's for one to forget somebody."""

DIAL_S = 1.0
"""A machine on one's own network answers a connect in milliseconds; past this it is off, cut off, or elsewhere."""

ASK_S = 5.0
"""A small question takes one write to disk at most."""

NO_TYPES: Mapping[str, type[TiermeshError]] = {}

IDLE_S = 30.0
"""A link without a message for this long is closed; the next message opens another."""

WAITING_LIMIT = 16
"""Messages kept for one peer while its link opens; the oldest go first, and the protocol repeats what matters."""

LONGEST_MESSAGE_BYTES = 64 * 1024 * 1024
"""The full view of a thousand nodes takes a few megabytes; whoever sends more than this is cut off."""

UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""What a request that gets nowhere raises; the last one for an address that can be no host's name."""

UNACKNOWLEDGED_MS = 1500
"""A connection whose data stays unacknowledged this long is dead: after a cut has healed, a new connection works at
once, while an old one waits for its doubled retransmission timer."""


class Events(Protocol):
    """What the owner of `Peers` is told. All calls come on the loop."""

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None: ...
    def on_lost(self, peer: NodeId, session: SessionId) -> None:
        """The last link with this run of this peer broke."""

    def on_refused(self, target: NodeId | Address, *, known: bool) -> None: ...
    def on_identified(self, address: Address, node: NodeId) -> None: ...
    def on_twin(self, session: SessionId) -> None:
        """Another daemon answers with this node's own id."""


class Peers:
    """The transport of one node."""

    def __init__(self, passport: Passport, events: Events) -> None:
        self._passport = passport
        self._events = events
        self._links: defaultdict[NodeId, list[Link]] = defaultdict(list)
        self._waiting: dict[NodeId | Address, list[str]] = {}
        self._background = Background()
        self._told: set[str] = set()
        self._closing = False
        self._http: aiohttp.ClientSession | None = None
        self._stamped = passport.headers | {"Content-Type": "application/json"}
        """Headers of every prompt."""

    async def open(self) -> None:
        """Call once, on the loop, before anything else."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=_impatient_socket)
        self._http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(None, sock_connect=DIAL_S),
        )
        self._background.start(self._run_sweeps())

    async def close(self) -> None:
        """Say goodbye on every link and end every task."""
        self._closing = True
        await asyncio.gather(*(link.close(1001) for links in self._links.values() for link in tuple(links)))
        await self._background.close()
        if self._http is not None:
            await self._http.close()

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

    def generate(
        self,
        node: NodeId,
        addresses: tuple[Address, ...],
        body: Mapping[str, object],
        *,
        path: str = GENERATE_PATH,
        request_id: str,
        deadline_s: float,
    ) -> AbstractAsyncContextManager[Reply]:
        """Have `node` answer with its own engines: a chat request, or at `EMBED_PATH` one for embeddings.

        Entering raises `EngineFailed` when no head comes.
        """
        stamped = {**self._stamped, headers.REQUEST_ID: request_id, headers.DEADLINE: f"{deadline_s:.3f}"}
        return Prompt("the node", partial(self._post, node, addresses, path, body, stamped))

    async def _post(
        self,
        node: NodeId,
        addresses: tuple[Address, ...],
        path: str,
        body: Mapping[str, object],
        stamped: Mapping[str, str],
    ) -> aiohttp.ClientResponse:
        assert self._http is not None, "open() comes first"
        failures = []
        for address in self._preferred(node, addresses):
            try:
                response = await self._http.post(f"http://{address}{path}", data=written(body), headers=stamped)
            except UNREACHABLE as error:
                failures.append(f"{address}: {reason_of(error)}")
                if not isinstance(error, _NEVER_ARRIVED):
                    break  # it may have begun to work: another address of the same node is no remedy
                continue
            if response.headers.get(HEADER_PEER) == node:
                return response
            response.close()
            failures.append(f"{address}: another node answers there")
        raise EngineFailed(f"node {node[:8]} can't be reached ({'; '.join(failures) or 'no known address'})")

    async def ask(
        self,
        node: NodeId,
        addresses: tuple[Address, ...],
        path: str,
        body: Mapping[str, object],
        *,
        within_s: float = ASK_S,
        typed: Mapping[str, type[TiermeshError]] = NO_TYPES,
    ) -> dict[str, object]:
        """POST a JSON question to `node`, which may take `within_s` at each of its addresses.

        Raises what `typed` has for the type of a refusal; for others `InvalidInput` for a 4xx and `Unavailable` for
        all else. `Unreachable`: no answer came.
        """
        assert self._http is not None, "open() comes first"
        reasons = []
        for address in self._preferred(node, addresses):
            try:
                async with asyncio.timeout(within_s):
                    async with self._http.post(
                        f"http://{address}{path}", json=body, headers=self._passport.headers
                    ) as response:
                        answer = await response.json()
            except (*UNREACHABLE, ValueError) as error:
                reasons.append(f"{address}: {reason_of(error)}")
                continue
            if response.headers.get(HEADER_PEER) != node:
                reasons.append(f"{address}: another node answers there")
                continue
            if response.status == 200 and isinstance(answer, dict):
                return answer
            raise _refusal(response.status, answer, typed)
        raise Unreachable(f"node {node[:8]} can't be reached ({'; '.join(reasons) or 'no known address'})")

    @contextlib.asynccontextmanager
    async def read(
        self, node: NodeId, addresses: tuple[Address, ...], path: str, *, offset: int = 0
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET a file of `node` from byte `offset` on: the head has come, the body is for the caller to bound in time.

        Entering raises `NotFound` when the node does not have it, `InvalidInput` for its other 4xx, `Unavailable` for
        all else.
        """
        asked = self._passport.headers | {"Accept-Encoding": "identity"}
        response = await self._head(node, addresses, path, asked | ({"Range": f"bytes={offset}-"} if offset else {}))
        try:
            yield response
        finally:
            response.close()

    async def _head(
        self, node: NodeId, addresses: tuple[Address, ...], path: str, asked: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        assert self._http is not None, "open() comes first"
        reasons = []
        for address in self._preferred(node, addresses):
            try:
                async with asyncio.timeout(ASK_S):
                    response = await self._http.get(f"http://{address}{path}", headers=asked)
            except UNREACHABLE as error:
                reasons.append(f"{address}: {reason_of(error)}")
                continue
            if response.headers.get(HEADER_PEER) == node and response.status in (200, 206):
                return response
            response.close()
            if response.headers.get(HEADER_PEER) != node:
                reasons.append(f"{address}: another node answers there")
                continue
            if response.status == 404:
                raise NotFound(f"node {node[:8]} does not have it")
            raise _refusal(response.status, None, NO_TYPES)
        raise Unreachable(f"node {node[:8]} can't be reached ({'; '.join(reasons) or 'no known address'})")

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


_NEVER_ARRIVED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, UnicodeError)
"""Of these, those after which nobody can have begun to work."""


def _refusal(status: int, answer: object, typed: Mapping[str, type[TiermeshError]]) -> TiermeshError:
    detail = answer.get("error") if isinstance(answer, dict) else None
    told = detail if isinstance(detail, dict) else {}
    message = str(told.get("message") or f"HTTP {status}")
    kind = typed.get(str(told.get("type")), InvalidInput if 400 <= status < 500 else Unavailable)
    if issubclass(kind, InvalidInput):
        param = told.get("param")
        return kind(message, param=param if isinstance(param, str) else None)
    return kind(message)


def _impatient_socket(addr_info: tuple[object, ...]) -> socket.socket:
    family, kind, proto = addr_info[0], addr_info[1], addr_info[2]
    sock = socket.socket(family, kind, proto)  # type: ignore[arg-type]
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    give_up_on_silence(sock)
    return sock


def give_up_on_silence(sock: socket.socket) -> None:
    """Have the kernel end a connection whose data stays unacknowledged for `UNACKNOWLEDGED_MS`."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    elif sys.platform == "darwin":
        tcp_rxt_conndroptime = 0x80  # <netinet/tcp.h>; whole seconds
        sock.setsockopt(socket.IPPROTO_TCP, tcp_rxt_conndroptime, -(-UNACKNOWLEDGED_MS // 1000))


def _stamp_of(error: aiohttp.WSServerHandshakeError) -> Stamp | None:
    if error.headers is None:
        return None
    try:
        return read_stamp(error.headers)
    except TiermeshError:
        return None
