"""`GET /api/metrics`: what became of requests, by the node that worked on them and over the whole mesh."""

from __future__ import annotations

from pydantic import Field

from tiermesh.protocol.validation import Wire


class RequestSums(Wire):
    """Sums that can be added up, since the start of the daemons that counted. Times are of requests that ended well;
    `making_s` is the time in which `timed_tokens` were made. `last_request` is Unix time."""

    ok: int = 0
    failed: int = 0
    abandoned: int = 0
    took_s: float = 0.0
    first_token_s: float = 0.0
    first_tokens: int = 0
    tokens: int = 0
    timed_tokens: int = 0
    making_s: float = 0.0
    last_request: float | None = None


class CountedReport(Wire):
    """What one node counted of the requests that it carried, by the id of the node that worked on them."""

    whole: RequestSums
    nodes: dict[str, RequestSums] = Field(default_factory=dict)
    names: dict[str, str] = Field(default_factory=dict)


class RequestFigures(Wire):
    """The same for people; None where nothing was counted. `requests` includes those that their clients abandoned,
    which are neither success nor failure. `last_request` is an ISO 8601 time in UTC."""

    requests: int
    succeeded: int
    failed: int
    success_rate: float | None
    latency_ms: float | None
    first_token_ms: float | None
    tokens_per_s: float | None
    tokens: int
    last_request: str | None


class NodeMetrics(RequestFigures):
    """Attempts at one node, by whichever node they were sent."""

    id: str
    name: str


class MetricsReport(Wire):
    """`cluster` counts requests, `nodes` the attempts that were made for them. `missing` names the nodes whose own
    counts are not in it, and why."""

    node: str
    cluster: RequestFigures
    nodes: list[NodeMetrics]
    missing: dict[str, str] = Field(default_factory=dict)
