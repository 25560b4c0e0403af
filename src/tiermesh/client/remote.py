"""The mesh over HTTP, one method a route; every failure is one of `tiermesh.errors`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote

import aiohttp

from tiermesh.client.answers import checked, decoded, unreachable
from tiermesh.client.jobs import Data, TrainingJob, submission
from tiermesh.client.stream import Stream
from tiermesh.client.upload import Piece, upload
from tiermesh.errors import DeadlineExceeded, EngineFailed, InvalidInput
from tiermesh.protocol.cluster import ClusterReport, HealthReport, NodeOrderReport, PolicyReport
from tiermesh.protocol.complete import CompleteResponse, Message
from tiermesh.protocol.diagnose import DiagnoseReport
from tiermesh.protocol.health import MeshHealthReport
from tiermesh.protocol.jobs import DataReport, JobList, JobReport
from tiermesh.protocol.metrics import MetricsReport
from tiermesh.protocol.openai import ModelCard, ModelList
from tiermesh.protocol.route import RouteReport
from tiermesh.types import Tier

CONNECT_TIMEOUT_S = 5.0
"""A daemon on one's own network accepts in milliseconds, over a VPN in tenths of seconds."""

ANSWER_TIMEOUT_S = 600.0
"""What a node itself gives a request: a large model may have to be loaded first, and a slow machine writes slowly."""

DEFAULT_URL = "http://localhost:8000"

Messages = str | Sequence[Message | Mapping[str, Any]]
"""A text is one message of the user."""


class Options(TypedDict, total=False):
    """What may be said beside the messages; the fields of `POST /api/complete`."""

    model: str | None
    tier: Tier | None
    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    stop: str | list[str] | None
    seed: int | None
    tools: Sequence[Mapping[str, Any]] | None


class RemoteClient:
    """Any node of a mesh. Use as `async with RemoteClient(url) as mesh`; connections are kept and used again.

    `token` defaults to `$MESH_TOKEN`. `timeout_s` bounds a whole answer, and in a stream the silence between two
    pieces.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.token = token or os.environ.get("MESH_TOKEN")
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def discover(
        cls,
        *,
        cluster: str | None = None,
        interface: str | None = None,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        search_s: float = 3.0,
    ) -> Self:
        """A client for the first node that mDNS finds and that answers; `cluster` None takes any cluster.

        `interface` is an address of this machine to search from (`127.0.0.1`: only this machine); None searches on
        all. Raises `Unavailable` when nobody was found within `search_s`.
        """
        from tiermesh.client.discovery import find_url

        return cls(await find_url(cluster, interface, search_s), token=token, timeout_s=timeout_s)

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

    async def complete(self, messages: Messages, **options: Unpack[Options]) -> CompleteResponse:
        """Ask and wait for the whole answer. What is not said is left to the node that answers."""
        return decoded(CompleteResponse, await self._json("POST", "/api/complete", _body(messages, options)))

    def stream(self, messages: Messages, **options: Unpack[Options]) -> Stream:
        """Ask and iterate over the answer's text as it comes; `.result` is then what `complete` gives."""
        body = _body(messages, options)
        return Stream(self._chunks("/api/complete", body | {"stream": True}), self.url)

    async def route(self, messages: Messages, *, model: str | None = None, tier: Tier | None = None) -> RouteReport:
        """Who would answer that now, and why; nobody is asked."""
        return decoded(
            RouteReport, await self._json("POST", "/api/route", _body(messages, {"model": model, "tier": tier}))
        )

    async def models(self) -> list[ModelCard]:
        """Every model that the mesh can answer with now."""
        return decoded(ModelList, await self._json("GET", "/v1/models")).data

    async def cluster(self) -> ClusterReport:
        """The mesh as this node sees it."""
        return decoded(ClusterReport, await self._json("GET", "/api/cluster"))

    async def health(self) -> HealthReport:
        """This node alone; needs no token."""
        return decoded(HealthReport, await self._json("GET", "/health"))

    async def mesh_health(self, *, history: bool = False) -> MeshHealthReport:
        """How every node is, asked just now; with what each one remembers, oldest first."""
        return decoded(MeshHealthReport, await self._json("GET", "/api/health" + "?history=true" * history))

    async def metrics(self) -> MetricsReport:
        """What became of requests, by the node that worked on them and over the whole mesh."""
        return decoded(MetricsReport, await self._json("GET", "/api/metrics"))

    async def policy(self) -> PolicyReport:
        """What holds on every node."""
        return decoded(PolicyReport, await self._json("GET", "/api/config"))

    async def set_policy(self, policy: Mapping[str, object]) -> PolicyReport:
        """Make this the policy of the whole mesh."""
        return decoded(PolicyReport, await self._json("POST", "/api/config", policy))

    async def order(self, order: Literal["drain", "resume", "remove"], node: str) -> NodeOrderReport:
        """Let a node, by its name or id, take no new work, take it again, or leave the mesh."""
        path = f"/api/nodes/{quote(node, safe='')}/{order}"
        return decoded(NodeOrderReport, await self._json("POST", path, {}))

    async def train(
        self,
        spec: Mapping[str, object],
        data: Data,
        *,
        eval_data: Data | None = None,
        name: str | None = None,
        job_id: str | None = None,
    ) -> TrainingJob:
        """Have the node train, and return as soon as it has accepted; the data travels with the request.

        `spec` is a training spec without its paths. Sent again with the same `job_id`, it is the same job.
        """
        body = submission(spec, name=name, job_id=job_id)
        body["data"] = await self._deliver(data)
        if eval_data is not None:
            body["eval_data"] = await self._deliver(eval_data)
        return TrainingJob(self, decoded(JobReport, await self._json("POST", "/api/train", body)))

    async def jobs(self) -> list[JobReport]:
        """The node's training jobs, the newest last."""
        return decoded(JobList, await self._json("GET", "/api/jobs")).jobs

    async def job(self, job: str) -> TrainingJob:
        """One of them, by name or id."""
        return TrainingJob(self, await self.job_report(job))

    async def job_report(self, job: str) -> JobReport:
        """How it is now."""
        return decoded(JobReport, await self._json("GET", f"/api/jobs/{quote(job, safe='')}"))

    async def cancel_job(self, job: str) -> JobReport:
        """End it after a checkpoint."""
        return decoded(JobReport, await self._json("POST", f"/api/jobs/{quote(job, safe='')}/cancel", {}))

    def job_chunks(self, job: str, after: int) -> AsyncIterator[bytes]:
        """The raw stream of a job's events that come after the `after`-th."""
        return self._chunks(f"/api/jobs/{quote(job, safe='')}/events?after={after}", method="GET")

    async def data_report(self, sha256: str) -> DataReport:
        """How much of this data the node has. Raises `NotFound` when it has nothing of it."""
        return decoded(DataReport, await self._json("GET", f"/api/data/{sha256}"))

    async def put_data(self, sha256: str, data: Data, piece: Piece) -> DataReport:
        """Send a piece of it."""
        limits = aiohttp.ClientTimeout(None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s)
        async with self._request("PUT", f"/api/data/{sha256}", None, limits, (data, piece)) as response:
            return decoded(DataReport, await checked(response))

    async def _deliver(self, data: Data) -> dict[str, str]:
        """Send it, unless the node has it already; how a request names it then."""
        return {"sha256": await upload(self, data), "name": data.name}

    async def diagnose(self) -> DiagnoseReport:
        """Have this node try its own engines, and every other member by each of its addresses."""
        return decoded(DiagnoseReport, await self._json("POST", "/api/cluster/test", {}))

    async def _json(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        limits = aiohttp.ClientTimeout(self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._request(method, path, body, limits) as response:
            return await checked(response)

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


def _body(messages: Messages, options: Options) -> dict[str, object]:
    """What was said, as it was said: 0.0 stays 0.0, and None is as good as not said."""
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else [*map(_plain, messages)]
    return {"messages": said} | {name: value for name, value in options.items() if value is not None}


def _plain(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    return message.model_dump(exclude_none=True) if isinstance(message, Message) else dict(message)
