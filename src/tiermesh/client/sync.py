"""`RemoteClient` without `await`: its own loop in its own thread, so it works inside a notebook's running loop too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self, Unpack

from tiermesh.client.data import Data
from tiermesh.client.http import ANSWER_TIMEOUT_S, DEFAULT_URL
from tiermesh.client.job_door import JobOptions
from tiermesh.client.loop_thread import LoopThread
from tiermesh.client.remote import Messages, Options, RemoteClient
from tiermesh.client.stream import Stream
from tiermesh.client.sync_job import SyncJob
from tiermesh.protocol.cluster import ClusterReport, HealthReport
from tiermesh.protocol.complete import CompleteResponse
from tiermesh.protocol.jobs import JobList, JobReport
from tiermesh.protocol.openai import ModelCard


class SyncClient:
    """Any node of a mesh. Use as `with SyncClient(url) as mesh`, or call `close` at the end."""

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._thread = LoopThread()
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
        thread = LoopThread()
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

    def train(
        self,
        spec: Mapping[str, object],
        data: Data,
        *,
        eval_data: Data | None = None,
        job_id: str | None = None,
        **options: Unpack[JobOptions],
    ) -> SyncJob:
        """As `RemoteClient.train`."""
        sent = self._client.train(spec, data, eval_data=eval_data, job_id=job_id, **options)
        return SyncJob(self._thread.run(sent), self._thread)

    def jobs(self, limit: int | None = None) -> list[JobReport]:
        """The mesh's training jobs, the newest last, as `RemoteClient.jobs`."""
        return self._thread.run(self._client.jobs(limit))

    def job_list(self, limit: int | None = None) -> JobList:
        """As `jobs`, with how many are left out, in `more`."""
        return self._thread.run(self._client.job_list(limit))

    def job(self, job: str) -> SyncJob:
        """One of them, by name or id. Raises `NotFound`."""
        return SyncJob(self._thread.run(self._client.job(job)), self._thread)

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

    def __init__(self, stream: Stream, thread: LoopThread) -> None:
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
