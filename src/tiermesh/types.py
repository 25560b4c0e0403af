"""Values that every room shares: frozen, comparable, free of behaviour beyond their own shape.

Standard library only. How they look on the wire is the business of `core.messages` (between nodes) and of
`protocol` (between nodes and people).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType

NodeId = NewType("NodeId", str)
"""128 random bits as 32 lower-case hexadecimal digits; kept in the node's state folder."""

Address = NewType("Address", str)
"""`host:port` or `[ipv6]:port`, where a daemon may listen."""

SessionId = NewType("SessionId", str)
"""One run of one daemon: `<start, Unix ms, 13 digits>-<8 random hex digits>`; sessions of one node sort by age."""

Tier = Literal[0, 1, 2]
"""0 fast and small, 1 medium, 2 powerful."""

MemberState = Literal["up", "draining", "down"]
ModelState = Literal["warm", "cold", "loading"]
JobState = Literal[
    "estimating", "waiting", "queued", "running", "cancelling", "completed", "failed", "cancelled", "refused"
]
"""`waiting` is for a person, at the gate; `queued` is for a node."""
AttemptState = Literal["running", "completed", "failed", "stopped"]
"""`stopped`: before its end, after a checkpoint; ordered again, it goes on."""
EngineState = Literal["ready", "starting", "down"]
HealthState = Literal["healthy", "degraded", "unhealthy", "unknown"]

TIERS: tuple[Tier, ...] = (0, 1, 2)


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """Who leads and since which term; totally ordered. Ballots fence orders, they do not rank machines."""

    term: int
    node_id: NodeId


NO_BALLOT = Ballot(0, NodeId(""))


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a peer may be reached: a hint, never a proof. `node_id` is None until somebody answered there."""

    addresses: tuple[Address, ...]
    node_id: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One model as one node serves it. `digest` names its exact weights: equal ones continue each other's streams."""

    name: str
    digest: str
    tier: Tier
    engine: str
    state: ModelState
    progress: float | None = None
    """How far its loading is, 0 to 1 in tenths; None unless it is being loaded, and where nobody can tell."""
    can_continue: bool = False
    """Do its streams carry token ids, and may a request begin with those of an unfinished answer?"""
    job: str = ""
    """The id of the job that left it, when it came from training on this mesh."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """`kind` is `kernel` or the server behind an OpenAI-compatible API (`ollama`, `vllm`, `openai`, ...)."""

    name: str
    kind: str
    state: EngineState
    can_continue: bool = False
    """Can any of its models continue an unfinished answer from its token ids? `Model.can_continue` says which."""
    slots_unknown: bool = False
    """Did nobody say how many requests it takes at once? Then its slots are a guess, and it queues for itself."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests now being worked on, how many may be at once, and how many wait."""

    active: int = 0
    slots: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver says of one accelerator; None is unknown."""

    name: str
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """The static facts of a machine; None is unknown, never a guess."""

    cpu_model: str | None = None
    cores: int | None = None
    ram_bytes: int | None = None
    disk_free_bytes: int | None = None
    system: str | None = None
    machine: str | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """How well a node is, as it judges itself; its figures are its own to tell. Told anew only when it matters."""

    score: int | None = None
    """0 to 100: 80 and up healthy, 60 and up degraded, else unhealthy. None is unknown: a node that tells nothing."""
    alerts: tuple[str, ...] = ()
    """What is wrong, by short name (`memory`, `gpu_temperature`, ...); critical ones end in `!`."""
    on_battery: bool = False
    """Does it run on its battery, as far as that can be read?"""


@dataclass(frozen=True, slots=True)
class Status:
    """What a node says of itself. Replaced whole whenever any part of it changes."""

    name: str
    addresses: tuple[Address, ...]
    state: Literal["up", "draining"] = "up"
    tier: Tier | None = None
    models: tuple[Model, ...] = ()
    engines: tuple[EngineInfo, ...] = ()
    hardware: Hardware = Hardware()
    load: Load = Load()
    eligible: bool = True
    """May this node be coordinator at all?"""
    latency_ms: float | None = None
    """Smoothed round trip to the coordinator; 0.0 on the coordinator itself, None before the first one."""
    version: str = ""
    health: Health = Health()
    training: str = ""
    """The name of the job that has this machine's training slot, if one has."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the coordinator sees it."""

    id: NodeId
    session: SessionId
    status: Status
    joined: int
    """Join number in this group; lower has been a member for longer."""
    state: MemberState = "up"
    down_since: float | None = None
    """Unix time, seconds; set exactly while `state` is `down`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What must be the same everywhere, as one document. The higher `(ballot, version)` wins.

    `body` is plain JSON data; `config.PolicyDocument` gives it its meaning.
    """

    ballot: Ballot = NO_BALLOT
    version: int = 0
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """The coordinator's picture of the cluster, published whole. A node that was never led holds a view of itself."""

    ballot: Ballot = NO_BALLOT
    version: int = 0
    coordinator: NodeId | None = None
    """None while this node follows nobody; members are then those of the last view."""
    members: Mapping[NodeId, Member] = field(default_factory=dict)
    policy: Policy = Policy()
