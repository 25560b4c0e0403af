"""The mesh over HTTP, one method a route; every failure is one of `tiermesh.errors`. Jobs are in `job_door`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote

from tiermesh.client.answers import decoded
from tiermesh.client.http import ANSWER_TIMEOUT_S
from tiermesh.client.job_door import JobDoor
from tiermesh.client.model_door import ModelDoor
from tiermesh.client.stream import Stream
from tiermesh.protocol.cluster import ClusterReport, HealthReport, NodeOrderReport, PolicyReport
from tiermesh.protocol.complete import CompleteResponse, Message
from tiermesh.protocol.diagnose import DiagnoseReport
from tiermesh.protocol.health import MeshHealthReport
from tiermesh.protocol.metrics import MetricsReport
from tiermesh.protocol.openai import ModelCard, ModelList
from tiermesh.protocol.route import RouteReport
from tiermesh.types import Tier

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


class RemoteClient(JobDoor, ModelDoor):
    """Any node of a mesh. Use as `async with RemoteClient(url) as mesh`; connections are kept and used again.

    `token` defaults to `$MESH_TOKEN`. `timeout_s` bounds a whole answer, and in a stream the silence between two
    pieces.
    """

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

    async def diagnose(self) -> DiagnoseReport:
        """Have this node try its own engines, and every other member by each of its addresses."""
        return decoded(DiagnoseReport, await self._json("POST", "/api/cluster/test", {}))


def _body(messages: Messages, options: Options) -> dict[str, object]:
    """What was said, as it was said: 0.0 stays 0.0, and None is as good as not said."""
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else [*map(_plain, messages)]
    return {"messages": said} | {name: value for name, value in options.items() if value is not None}


def _plain(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    return message.model_dump(exclude_none=True) if isinstance(message, Message) else dict(message)
