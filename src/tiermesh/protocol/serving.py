"""Results of training as models that are served: what an adapter says of its origin, and how nodes tell one another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tiermesh.protocol.jobs import Label, Sha256, Ulid
from tiermesh.protocol.validation import Wire

ORIGIN_FILE = "origin.json"
"""In an adapter's folder, beside what peft writes, which names the base but not its weights."""
SERVED_PATH = "/mesh/v1/served"
MODELS_PATH = "/api/models"

Kind = Literal["adapter", "model"]


class Origin(Wire):
    """What an adapter was trained on. `base_digest` "" is unknown."""

    base_model: str
    base_digest: str = ""
    task: str = ""
    method: str = ""


class Result(Wire):
    """What a job left, to be served under its name: `POST /mesh/v1/served` asks a node to.

    `artifact` names the manifest of its files; `base` is the model that it was trained from, `node` the one that
    trained, `holders` are those that have the files. `shared`: may other nodes than `node` have them?
    """

    name: Label
    job: Ulid
    submitted_at: float = 0.0
    """Unix seconds. An id may be older or younger than its job: one made of an `Idempotency-Key` says no time."""
    artifact: Sha256
    kind: Kind = "adapter"
    base: str
    base_digest: str = ""
    node: str
    holders: list[str] = Field(default_factory=list)
    shared: bool = False

    @property
    def age(self) -> tuple[float, str]:
        """Of two with one name that of the later job is served."""
        return self.submitted_at, self.job


class ResultFile(Wire):
    """One file of a result."""

    name: str
    size_bytes: int
    sha256: str


class ServedResult(Result):
    """One that a node has. `pinned`: it never makes room for others there."""

    size_bytes: int = 0
    pinned: bool = False
    files: list[ResultFile] = Field(default_factory=list)


class ServedList(Wire):
    """`GET /mesh/v1/served`: what this node has."""

    results: list[ServedResult]


class TrainedModel(Wire):
    """`GET /api/models`: one result, over the whole mesh. `nodes` are the names of those that have it."""

    name: str
    job: str
    kind: Kind
    base: str
    base_digest: str
    artifact: str
    size_bytes: int
    nodes: list[str]
    shared: bool
    pinned: bool = False
    files: list[ResultFile] = Field(default_factory=list)


class TrainedList(Wire):
    """`GET /api/models`. `unreachable` are nodes that did not answer."""

    models: list[TrainedModel]
    unreachable: list[str] = Field(default_factory=list)


class RemovalReport(Wire):
    """`DELETE /api/models/{name}`: the names of the nodes where it is gone, and of those that could not be asked."""

    name: str
    nodes: list[str]
    unreachable: list[str] = Field(default_factory=list)


def read_origin(folder: Path) -> Origin | None:
    """What the adapter in `folder` says; None when it says nothing that can be read. Blocks."""
    try:
        return Origin.model_validate_json((folder / ORIGIN_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
