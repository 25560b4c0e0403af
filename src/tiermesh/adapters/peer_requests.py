"""What one node asks of another, as ordinary HTTP requests: prompts, small questions, files.

Whoever answers has to be the node that was meant: addresses change hands.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

import aiohttp

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.impatient import impatient_socket
from tiermesh.adapters.passport import HEADER_PEER, Passport
from tiermesh.adapters.prompt import Prompt, written
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import EngineFailed, InvalidInput, NotFound, TiermeshError, Unavailable, Unreachable
from tiermesh.protocol import headers
from tiermesh.types import Address, NodeId

GENERATE_PATH = "/mesh/v1/generate"
EMBED_PATH = "/mesh/v1/embed"
POLICY_PATH = "/mesh/v1/policy"
"""The coordinator's own door for a new policy, which never passes it on."""
DRAIN_PATH = "/mesh/v1/drain"
REMOVE_PATH = "/mesh/v1/remove"
"""A node's own door for an order to rest, and the coordinator's for one to forget somebody."""

DIAL_S = 1.0
"""A machine on one's own network answers a connect in milliseconds; past this it is off, cut off, or elsewhere."""

IDLE_S = 30.0
"""A connection on which nothing is said for this long is closed; the next message opens another."""

ASK_S = 5.0
"""A small question takes one write to disk at most."""

NO_TYPES: Mapping[str, type[TiermeshError]] = {}

UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""What a request that gets nowhere raises; the last one for an address that can be no host's name."""


class PeerRequests:
    """Requests of one node to others."""

    def __init__(self, passport: Passport) -> None:
        self._passport = passport
        self._http: aiohttp.ClientSession | None = None
        self._stamped = passport.headers | {"Content-Type": "application/json"}
        """Headers of every prompt."""

    async def open(self) -> None:
        """Call once, on the loop, before anything else."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=impatient_socket)
        self._http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(None, sock_connect=DIAL_S),
        )

    async def close(self) -> None:
        """End every connection."""
        if self._http is not None:
            await self._http.close()

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
        if self._http.closed:
            raise Unreachable("this node has left the mesh")
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

    def _preferred(self, node: NodeId, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
        """In which order to try them."""
        del node
        return addresses


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
