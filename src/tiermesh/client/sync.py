"""`RemoteClient` without `await`: its own loop in its own thread, so it works inside a notebook's running loop too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

from tiermesh.client.remote import ANSWER_TIMEOUT_S, DEFAULT_URL, Messages, Options, RemoteClient
from tiermesh.client.stream import Stream
from tiermesh.protocol.cluster import ClusterReport, HealthReport
from tiermesh.protocol.complete import CompleteResponse
from tiermesh.protocol.openai import ModelCard

T = TypeVar("T")


class SyncClient:
    """Any node of a mesh. Use as `with SyncClient(url) as mesh`, or call `close` at the end."""

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._thread = _LoopThread()
        self._client = RemoteClient(url, token=token, timeout_s=timeout_s)
        self._thread.run(self._client.__aenter__())

    @classmethod
    def discover(
        cls,
        *,
        cluster: str | None = None,
        interface: str | None = None,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        search_s: float = 3.0,
    ) -> Self:
        """As `RemoteClient.discover`."""
        thread = _LoopThread()
        try:
            search = RemoteClient.discover(cluster=cluster, interface=interface, search_s=search_s)
            return cls(thread.run(search).url, token=token, timeout_s=timeout_s)
        finally:
            thread.stop()

    @property
    def url(self) -> str:
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. May be called twice."""
        if self._thread.running:
            self._thread.run(self._client.close())
            self._thread.stop()

    def complete(self, messages: Messages, **options: Unpack[Options]) -> CompleteResponse:
        """Ask and wait for the whole answer."""
        return self._thread.run(self._client.complete(messages, **options))

    def stream(self, messages: Messages, **options: Unpack[Options]) -> SyncStream:
        """Ask and iterate over the answer's text as it comes."""
        return SyncStream(self._client.stream(messages, **options), self._thread)

    def models(self) -> list[ModelCard]:
        """Every model that the mesh can answer with now."""
        return self._thread.run(self._client.models())

    def cluster(self) -> ClusterReport:
        """The mesh as this node sees it."""
        return self._thread.run(self._client.cluster())

    def health(self) -> HealthReport:
        """This node alone; needs no token."""
        return self._thread.run(self._client.health())


class SyncStream:
    """`Stream` without `await`."""

    def __init__(self, stream: Stream, thread: _LoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def result(self) -> CompleteResponse:
        """The whole answer; only after the last piece."""
        return self._stream.result

    def __iter__(self) -> Iterator[str]:
        try:
            while (piece := self._thread.run(anext(self._stream, None))) is not None:
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Hang up; the mesh stops generating."""
        if self._thread.running:
            self._thread.run(self._stream.close())


class _LoopThread:
    """A running event loop that others hand work to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tiermesh-client", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Awaitable[T]) -> T:
        """Wait for `work`; an interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work
