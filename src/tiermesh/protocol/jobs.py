"""Training jobs as people and programs speak of them: `POST /api/train`, `/api/jobs`, `/api/data`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from tiermesh.protocol import ulid
from tiermesh.protocol.validation import Wire
from tiermesh.types import JobState

NAME_LIMIT = 100
"""Characters of a job's name, and of a dataset's."""
LISTED = 200
"""Jobs that are over in a list, where nobody asks for more; others are asked for by name."""
MAX_LISTED = 10_000
"""Of them, at most: some megabytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def check_name(name: str) -> str:
    """A job's name, or a model's. Raises ValueError, saying what would be right."""
    if len(name) > NAME_LIMIT or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name has letters (a-z), digits, '.', '_', ':' and '-', begins with a letter or a digit, and has "
            f"at most {NAME_LIMIT} characters"
        )
    return name


def _limit(value: object) -> float | Literal["any"]:
    """As `core.evaluation.parse_limit`, which a client does not know."""
    if value == "any":
        return "any"
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError("must be a number of at least 0, or any")
    return float(value)


Most = Annotated[float | Literal["any"], PlainValidator(_limit)]
"""A limit, or none."""
Ulid = Annotated[str, Field(pattern=ulid.PATTERN)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Label = Annotated[str, AfterValidator(check_name)]
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


class GatesGiven(Wire):
    """What the result must reach, where it differs from the mesh's policy. A field that is left out is the policy's;
    `any` asks for nothing."""

    max_final_loss: Most | None = None
    """Nats, of the training loss averaged over the last steps."""
    max_gap: Most | None = None
    """Nats by which the held-out loss may lie above the training loss."""
    canary: bool | None = None
    """Are a few fixed prompts answered before and after?"""

    def said(self) -> dict[str, Any]:
        """What is not left to the policy."""
        return self.model_dump(exclude_none=True)


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
    gates: GatesGiven = GatesGiven()
    approve: bool = False
    """Is what the gate would ask a person for approved already? The budget's maximum holds all the same."""
    max_usd: float | None = Field(None, ge=0)
    """What the submitter will pay at most: above it the job is refused, whatever the budget says."""
    priority: int = Field(0, ge=-100, le=100)
    """A higher one goes first."""
    open_data: bool = False
    """May data, checkpoints and result go to any node of a mesh without a token?"""


class DataReport(Wire):
    """`PUT` and `GET /api/data/{sha256}`: `size_bytes` are there; unless `whole`, the next piece begins behind them.

    `coming`: a piece is being received just now, of this client's broken connection or of another client; who sends
    one meanwhile is refused.
    """

    sha256: str
    size_bytes: int
    whole: bool = True
    coming: bool = False


class Progress(Wire):
    """The last figures that a worker told."""

    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


class EstimateReport(Wire):
    """What a job is expected to take on the node that fits best; `why` says why that one. None of a price: unknown."""

    node: str
    device: str = ""
    why: str = ""
    memory_bytes: int
    memory_bytes_low: int
    memory_bytes_high: int
    seconds: float
    seconds_low: float
    seconds_high: float
    usd: float | None = None
    usd_low: float | None = None
    usd_high: float | None = None
    usd_per_second: float | None = None
    steps: int = 0
    effective_batch: int = 0
    basis: str = ""
    """On what the figures rest, for a person."""


class GateReport(Wire):
    """What the budget says of the estimate, and why."""

    decision: Literal["approve", "wait", "refuse"]
    reason: str = ""


class TriedReport(Wire):
    """One attempt of a job. `cause` is first, moved or retried; `why` says it in words."""

    number: int
    node: str
    state: str
    cause: str = "first"
    why: str = ""
    ordered_at: float = 0.0
    reason: str = ""
    failure: str | None = None
    failed_gates: list[str] = Field(default_factory=list)
    """What its result did not reach."""
    step: int = 0
    steps: int = 0


class CheckpointReport(Wire):
    """A saved state, and the names of the nodes that had it whole when they told of it."""

    step: int
    nodes: list[str] = Field(default_factory=list)


class LogReport(Wire):
    """Where the newest attempt's log is: on `node`, and to be had from every node at `path`."""

    attempt: int
    node: str
    path: str


class HappenedReport(Wire):
    """Something in the life of a job."""

    at: float
    kind: str
    text: str


class JobReport(Wire):
    """One job. Times are Unix seconds. `reason` says why it waits, or how it ended; `node` is where it is kept."""

    id: str
    name: str
    state: JobState
    node: str
    reason: str = ""
    failure: str | None = None
    attempt: int = 1
    retries: int = 0
    """Which retry this attempt belongs to; 0: none was needed. A moved attempt is no retry."""
    model: str = ""
    method: str = ""
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    progress: Progress = Progress()
    checkpoint: CheckpointReport | None = None
    """The one furthest on; None: none was saved, or told of yet. Nodes remove it some time after the job's end."""
    log: LogReport | None = None
    """None: no attempt was made."""
    result: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    data: DataRef | None = None
    eval_data: DataRef | None = None
    estimate: EstimateReport | None = None
    gate: GateReport | None = None
    demands: str = ""
    """What its result must reach to count, in words."""
    attempts: list[TriedReport] = Field(default_factory=list)
    happened: list[HappenedReport] = Field(default_factory=list)
    served: list[str] = Field(default_factory=list)
    """Names of the nodes that answer under the job's name."""

    @property
    def is_over(self) -> bool:
        """Will nothing happen to it any more?"""
        return self.state in ("completed", "failed", "cancelled", "refused")


class ResultFile(Wire):
    """A file of a result; `name` may have folders in it."""

    name: str
    sha256: str
    size_bytes: int


class ResultReport(Wire):
    """`GET /api/jobs/{job}/results`: how it ended and what it left; `GET .../results/{name}` gives a file's bytes.

    `artifact` and `files` are empty for a job that left nothing (yet).
    """

    job: JobReport
    artifact: str = ""
    files: list[ResultFile] = Field(default_factory=list)


class CrashKept(Wire):
    """What a failure left where it happened: the folder `name` of its run's `crash/`, each part cut to a bound.

    `report` has `kind`, `message`, `at` (Unix seconds), the memory and the machine; `stack` is empty for a worker that
    was killed; `events` and `log` are the last ones.
    """

    name: str
    report: dict[str, Any] = Field(default_factory=dict)
    stack: str = ""
    events: list[dict[str, Any]] = Field(default_factory=list)
    log: str = ""


class CrashReport(CrashKept):
    """`GET /api/jobs/{job}/crash`: of the newest attempt that left one (`?attempt=`: of that one), on `node`."""

    job: str
    attempt: int
    node: str


class JobList(Wire):
    """`GET /api/jobs`: the newest last; without their specs. All that are not over, and of the others the `limit` that
    ended last; `more` is how many of those are left out."""

    jobs: list[JobReport]
    more: int = 0
