"""Training jobs on the wire: `POST /api/train`, `/api/jobs`, `/api/data`, and the peers' `/mesh/v1/attempts`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tiermesh.protocol import ulid
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.validation import Wire
from tiermesh.types import AttemptState, JobState

ATTEMPTS_PATH = "/mesh/v1/attempts"
NAME_LIMIT = 100
"""Characters of a job's name, and of a dataset's."""

Ulid = Annotated[str, Field(pattern=ulid.PATTERN)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=NAME_LIMIT)]
"""What can be typed after a command, and stand in a URL."""


class DataRef(Wire):
    """A dataset that the node has. `name` is a label whose ending tells the format (`faq.jsonl`)."""

    sha256: Sha256
    name: str = Field("data", min_length=1, max_length=1024)


class GivenData(Wire):
    """A dataset: one that was uploaded before, by its `sha256`, or a small one whole, as `text`."""

    name: str = Field("data", min_length=1, max_length=1024)
    sha256: Sha256 | None = None
    text: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.sha256 is None) == (self.text is None):
            raise ValueError("give either sha256, of data that was uploaded, or text")
        return self


class TrainRequest(Wire):
    """`POST /api/train`. Sent again with the same `id`, it is the same job.

    `spec` is a training spec (docs/training.md); its `dataset_path` and `eval_path` are names only, because the data
    travels with the request.
    """

    id: Ulid | None = None
    name: Label | None = None
    spec: dict[str, Any]
    data: GivenData
    eval_data: GivenData | None = None


class DataReport(Wire):
    """`PUT` and `GET /api/data/{sha256}`: it is there, whole."""

    sha256: str
    size_bytes: int


class AttemptOrder(Wire):
    """`POST /mesh/v1/attempts`: train this, by order of whoever has the `ballot`."""

    ballot: BallotReport
    job: Ulid
    attempt: int = Field(ge=1)
    spec: dict[str, Any]
    data: DataRef
    eval_data: DataRef | None = None


class Progress(Wire):
    """The last figures that a worker told."""

    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


class AttemptReport(Wire):
    """How an attempt is. `failure` is the kind of failure; `result` what the run told when it was done."""

    job: str
    attempt: int
    state: AttemptState
    reason: str = ""
    failure: str | None = None
    progress: Progress = Progress()
    result: dict[str, Any] = Field(default_factory=dict)


class JobReport(Wire):
    """One job. Times are Unix seconds. `reason` says why it waits, or how it ended; `node` is where it is kept."""

    id: str
    name: str
    state: JobState
    node: str
    reason: str = ""
    failure: str | None = None
    attempt: int = 1
    model: str = ""
    method: str = ""
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    progress: Progress = Progress()
    result: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    data: DataRef | None = None
    eval_data: DataRef | None = None

    @property
    def is_over(self) -> bool:
        """Will nothing happen to it any more?"""
        return self.state in ("completed", "failed", "cancelled")


class JobList(Wire):
    """`GET /api/jobs`: the newest last; without their specs."""

    jobs: list[JobReport]
