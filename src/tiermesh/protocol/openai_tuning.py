"""OpenAI's fine-tuning on the wire: `/v1/files` and `/v1/fine_tuning/jobs`.

What the request may say is here; what it means for a mesh is in `daemon/api/translate_tuning.py`. Fields that a mesh
can't honour are refused by name, so unknown ones are kept to be seen.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from tiermesh.protocol.validation import Wire

FILES_PATH = "/v1/files"
TUNING_PATH = "/v1/fine_tuning/jobs"
FILE_PREFIX = "file-"
JOB_PREFIX = "ftjob-"
PAGE = 20
"""Entries of a list that says no `limit`, as OpenAI has it."""
FILES_PAGE = 10_000
"""The same for files."""

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]


def _number(value: object) -> object:
    """`auto` says nothing."""
    return None if value == "auto" else value


Epochs = Annotated[Annotated[int, Field(ge=1, le=10_000)] | None, BeforeValidator(_number)]
BatchSize = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(_number)]
Multiplier = Annotated[Annotated[float, Field(gt=0, le=1000)] | None, BeforeValidator(_number)]
Beta = Annotated[Annotated[float, Field(gt=0, le=100)] | None, BeforeValidator(_number)]


class Asked(Wire):
    """Keeps what it doesn't know."""

    model_config = ConfigDict(extra="allow")


class Hyperparameters(Asked):
    """Of supervised tuning. None: the mesh's own choice. `batch_size` counts examples."""

    n_epochs: Epochs = None
    batch_size: BatchSize = None
    learning_rate_multiplier: Multiplier = None


class DpoHyperparameters(Hyperparameters):
    """Of preference tuning."""

    beta: Beta = None


class Supervised(Asked):
    """`method.supervised`."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(Asked):
    """`method.dpo`."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Method(Asked):
    """How to tune; the part of the same name has its hyperparameters."""

    type: str
    supervised: Supervised | None = None
    dpo: Dpo | None = None


class TuningRequest(Asked):
    """`POST /v1/fine_tuning/jobs`. `hyperparameters` is the older place for those of supervised tuning."""

    model: str = Field(min_length=1, max_length=512)
    training_file: str = Field(min_length=1, max_length=200)
    validation_file: str | None = Field(None, min_length=1, max_length=200)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**63)


class FileObject(Wire):
    """A file that was sent."""

    id: str
    bytes: int
    created_at: int
    filename: str
    object: Literal["file"] = "file"
    purpose: str = "fine-tune"
    status: Literal["processed"] = "processed"


class FileDeleted(Wire):
    """`DELETE /v1/files/{id}`."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class TuningError(Wire):
    """Why a job failed. `code` is the kind of failure."""

    code: str
    message: str
    param: str | None = None


class TuningJob(Wire):
    """A fine-tuning job. Times are Unix seconds. `fine_tuned_model` is the name to ask for once it is served."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    status: JobStatus
    model: str
    training_file: str
    validation_file: str | None = None
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str
    organization_id: str = ""
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    error: TuningError | None = None
    result_files: list[str] = Field(default_factory=list)


class TuningEvent(Wire):
    """Something that happened to a job; `data` has the figures of one of type `metrics`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = Field(default_factory=dict)


class TuningCheckpoint(Wire):
    """A state that the run saved."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float | int | None]


class Page(Wire):
    """A part of a list: `after` the last one's id comes the rest."""

    object: Literal["list"] = "list"
    data: list[Any]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class PageQuery(Wire):
    """What a list may be asked for."""

    after: str | None = None
    limit: int | None = Field(None, ge=1, le=FILES_PAGE)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


def file_id(purpose: str, name: str, sha256: str) -> str:
    """The same file sent again under the same name is the same file."""
    return FILE_PREFIX + hashlib.sha256(f"{purpose}\0{name}\0{sha256}".encode()).hexdigest()[:32]
