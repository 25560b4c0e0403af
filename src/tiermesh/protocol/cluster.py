"""`GET /api/cluster`, `GET /health` and the policy at `/api/config`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tiermesh.protocol.validation import Wire
from tiermesh.types import EngineState, HealthState, MemberState, ModelState, Tier

Role = str
"""`coordinator` or `member`."""


class BallotReport(Wire):
    """The ballot that this node obeys."""

    term: int
    node_id: str


class NodeName(Wire):
    """A node by id and name."""

    id: str
    name: str


class ModelReport(Wire):
    """One model on one node. `progress` is how far its loading is, 0 to 1; None unless it is being loaded.

    `breaker` is the asked node's own: while it is open, that node sends no requests there.
    """

    name: str
    digest: str
    tier: Tier
    engine: str
    state: ModelState
    progress: float | None = None
    can_continue: bool = False
    job: str = ""
    """The id of the job that left it, when it came from training on this mesh."""
    breaker: Literal["closed", "open", "half_open"] = "closed"
    retry_after_s: float = 0.0
    """How long the breaker lets nobody through; 0 where it does."""


class EngineReport(Wire):
    """One engine of a node. `can_continue`: another node's unfinished answer may be continued from its token ids."""

    name: str
    kind: str
    state: EngineState
    can_continue: bool = False
    slots_unknown: bool = False


class GpuReport(Wire):
    """One accelerator; None is unknown."""

    name: str
    memory_bytes: int | None = None


class HardwareReport(Wire):
    """The machine's static facts; None is unknown."""

    cpu_model: str | None = None
    cores: int | None = None
    ram_bytes: int | None = None
    disk_free_bytes: int | None = None
    system: str | None = None
    machine: str | None = None
    gpus: list[GpuReport] = Field(default_factory=list)


class LoadReport(Wire):
    """Requests worked on now, at most at once, and waiting."""

    active: int
    slots: int
    queued: int


class HealthBrief(Wire):
    """What the mesh knows of a node's health; `GET /api/health` asks for all of it. A critical alert ends in `!`."""

    score: int | None = None
    state: HealthState = "unknown"
    alerts: list[str] = Field(default_factory=list)


class NodeReport(Wire):
    """One member. `latency_ms` is its round trip to the coordinator, `last_seen` an ISO 8601 time in UTC."""

    id: str
    name: str
    urls: list[str]
    state: MemberState
    role: Role
    tier: Tier | None
    models: list[ModelReport]
    engines: list[EngineReport]
    hardware: HardwareReport
    load: LoadReport
    latency_ms: float | None
    last_seen: str
    version: str
    health: HealthBrief = HealthBrief()
    training: str = ""
    """The job that it trains; empty for none."""


class NodeOrderReport(Wire):
    """An order about a node was taken."""

    node: NodeName
    order: Literal["drain", "resume", "remove"]


class ClusterReport(Wire):
    """The cluster as the asked node sees it. `version` counts the views of this ballot."""

    protocol: int
    cluster: str
    open: bool
    self: str
    ballot: BallotReport
    coordinator: NodeName | None
    version: int
    nodes: list[NodeReport]


class HealthReport(Wire):
    """`GET /health`: this node alone, without a token. `time` is its clock in Unix seconds."""

    status: str
    model: str | None
    version: str
    node: str
    node_id: str
    cluster: str
    time: float


class PolicyReport(Wire):
    """`GET /api/config`, and the answer to `POST`: the policy that holds everywhere, and its place in time."""

    ballot: BallotReport
    version: int
    policy: dict[str, Any] = Field(default_factory=dict)
