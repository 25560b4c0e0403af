"""One node over HTTP: connections that are kept, limits, and every failure as one of `tiermesh.errors`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from tiermesh.client.answers import checked, decoded, unreachable
from tiermesh.client.data import Data
from tiermesh.client.upload import Piece
from tiermesh.errors import DeadlineExceeded, EngineFailed, InvalidInput, TiermeshError
from tiermesh.protocol.cluster import ClusterReport

CONNECT_TIMEOUT_S = 5.0
"""A daemon on one's own network accepts in milliseconds, over a VPN in tenths of seconds."""

ANSWER_TIMEOUT_S = 600.0
"""What a node itself gives a request: a large model may have to be loaded first, and a slow machine writes slowly."""

LOOK_TIMEOUT_S = 2.0
"""A node that lives says so in milliseconds, and after seconds when it is overloaded."""

DEFAULT_URL = "http://localhost:8000"


class Http:
    """The node at `url`. `token` defaults to `$MESH_TOKEN`. `timeout_s` bounds a whole answer, and in a stream the
    silence between two pieces."""

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.token = token or os.environ.get("MESH_TOKEN")
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._others: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self._session = aiohttp.ClientSession(headers=headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, running streams too. May be called twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def meet(self) -> None:
        """Learn where the other nodes are, so that one of them can be turned to; as before when that can't be told."""
        with contextlib.suppress(TiermeshError):
            report = decoded(ClusterReport, await self._json("GET", "/api/cluster"))
            others = [node for node in report.nodes if node.id != report.self and node.state != "down"]
            self._others = tuple(url for node in others for url in node.urls)

    async def turn(self) -> None:
        """Ask another node from now on, when this one does not answer and another one does."""
        for url in (self.url, *self._others):
            if await self._lives(url):
                if url != self.url:
                    self.url = url
                    await self.meet()
                return

    async def _lives(self, url: str) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{url}/health", timeout=aiohttp.ClientTimeout(LOOK_TIMEOUT_S)) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _json(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        limits = aiohttp.ClientTimeout(self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._request(method, path, body, limits) as response:
            return await checked(response)

    async def _text(self, path: str) -> tuple[str, Mapping[str, str]]:
        """A page that is no JSON, with its headers."""
        limits = aiohttp.ClientTimeout(self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._request("GET", path, None, limits) as response:
            if response.status != 200:
                await checked(response)
            return (await response.read()).decode("utf-8", "replace"), response.headers

    async def _chunks(
        self, path: str, body: Mapping[str, object] | None = None, *, method: str = "POST"
    ) -> AsyncIterator[bytes]:
        limits = aiohttp.ClientTimeout(None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s)
        async with self._request(method, path, body, limits) as response:
            if response.status != 200:
                await checked(response)
            async for chunk in response.content.iter_any():
                yield chunk

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        limits: aiohttp.ClientTimeout,
        sending: tuple[Data, Piece] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with RemoteClient(...) as mesh:`")
        try:
            sent: dict[str, Any] = {"json": body}
            if sending is not None:
                data, piece = sending
                sent = {"data": data.chunks(piece.offset, piece.size_bytes), "headers": piece.headers}
            async with self._session.request(method, self.url + path, timeout=limits, **sent) as response:
                yield response
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise InvalidInput(f"{self.url!r} is no URL of a node, for example http://192.168.1.20:8000") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise unreachable(self.url, error) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.url} said nothing for {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineFailed(f"the answer of {self.url} broke off: {error}") from error
