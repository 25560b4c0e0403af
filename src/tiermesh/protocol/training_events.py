"""What a training run tells as it goes: one JSON line an event, in the order in which things happened.

Whoever reads them passes over the events that it doesn't know, and the last line of a file that is being written.
Figures that are not finite or not known are None. `at` is Unix time in seconds, of the machine that trains.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from tiermesh.protocol.validation import Wire

PhaseName = Literal["model", "data", "probe", "train", "evaluate", "save", "result"]
PhaseState = Literal["started", "completed", "failed", "interrupted"]
FailureKind = Literal[
    "out_of_memory",
    "non_finite",
    "diverged",
    "bad_data",
    "bad_spec",
    "model_unusable",
    "checkpoint_unusable",
    "disk_full",
    "stalled",
    "overheated",
    "plugin_failed",
    "environment_unfit",
    "unexplained",
]
"""Why a run ended without its result: the types of `TrainingFailure`. Whoever decides what to do reads nothing else."""


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite)]
"""NaN and Inf become None."""


class Event(Wire):
    """What all have in common."""

    at: float = 0.0


class Started(Event):
    """A worker begins or takes up the run. `threads` compute; `versions` are those that a result depends on."""

    event: Literal["started"] = "started"
    pid: int
    threads: int
    memory_limit_bytes: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Phase(Event):
    """A part of the work begins or ends. While it lasts it may be told again with `done` of `total`, in `unit`."""

    event: Literal["phase"] = "phase"
    phase: PhaseName
    state: PhaseState
    detail: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""


class DataReady(Event):
    """The data was read. Lengths are tokens of a record; `utilisation` is the share of positions that hold one."""

    event: Literal["data"] = "data"
    records: int
    bad_records: int = 0
    held_out_records: int = 0
    tokens: int
    rows: int
    utilisation: float | None = None
    length_p50: int | None = None
    length_p95: int | None = None
    length_max: int | None = None
    bad: list[str] = Field(default_factory=list)
    """The first of the bad records, each with its line and what is wrong with it; all of them are counted, those of the
    held-out file too."""
    cached: bool = False
    """Were the tokens there, from an earlier run or look at the data?"""


class ModelReady(Event):
    """The model was loaded and made ready to be trained. `architecture` as in its configuration."""

    event: Literal["model"] = "model"
    architecture: str
    parameters: int
    trainable: int
    precision: str
    checkpointing: bool = False


class Planned(Event):
    """What the run will do: steps `first_step` to `steps`."""

    event: Literal["planned"] = "planned"
    steps: int
    first_step: int = 0
    effective_batch: int
    micro_batch_size: int
    warmup_steps: int = 0


class Resumed(Event):
    """The run goes on after `step`, from `checkpoint`. `differences`: conditions that are not as they were, so that the
    result may differ from an undisturbed run's in the last bits; empty when it will not."""

    event: Literal["resumed"] = "resumed"
    step: int
    checkpoint: str
    differences: list[str] = Field(default_factory=list)


class StepDone(Event):
    """Steps up to `step` are done; figures are of this step. `tokens` counts those seen in the whole run."""

    event: Literal["step"] = "step"
    step: int
    steps: int
    epoch: float
    loss: Figure
    perplexity: Figure = None
    learning_rate: float
    grad_norm: Figure = None
    tokens: int = 0
    tokens_per_s: Figure = None
    utilisation: float | None = None
    """Share of the positions computed that hold a token."""
    step_s: Figure = None
    memory_bytes: int | None = None
    gpu_use: Figure = None
    """Share of the moment before in which the GPU computed; None without one, or where its driver doesn't say."""
    eta_s: Figure = None
    skipped_steps: int = 0
    rollbacks: int = 0


class Evaluated(Event):
    """The held-out records were looked at after `step` steps. `best`: lower than ever before in this run."""

    event: Literal["evaluated"] = "evaluated"
    step: int
    loss: Figure
    perplexity: Figure = None
    tokens: int = 0
    best: bool = False


class Sampled(Event):
    """What the model answered after `step` steps."""

    event: Literal["sampled"] = "sampled"
    step: int
    prompt: str
    text: str


class StepSkipped(Event):
    """A bad step: nothing was changed. `where`: what was not finite; `in_a_row` counts this one."""

    event: Literal["step_skipped"] = "step_skipped"
    step: int
    where: str
    in_a_row: int = 1


class RolledBack(Event):
    """After a spike of the loss the run went back to `to_step`; rows `first_position` to `last_position` of its order
    are not shown again."""

    event: Literal["rolled_back"] = "rolled_back"
    step: int
    to_step: int
    loss: Figure = None
    first_position: int = 0
    last_position: int = 0


class Relieved(Event):
    """Memory ran short (`pressure`: share of the limit) and `action` was taken. The effective batch is what it was."""

    event: Literal["relieved"] = "relieved"
    step: int
    level: str
    pressure: float | None = None
    action: str
    micro_batch_size: int
    checkpointing: bool = False


class CheckpointSaved(Event):
    """`name` is a folder under checkpoints/, whole and on the disk."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    name: str
    seconds: float = 0.0
    size_bytes: int = 0


class Paused(Event):
    """The run waits, for `reason`; `Continued` ends it."""

    event: Literal["paused"] = "paused"
    step: int
    reason: str


class Continued(Event):
    """The run goes on after a pause."""

    event: Literal["continued"] = "continued"
    step: int


class Warned(Event):
    """Something a person should know, and need not act on."""

    event: Literal["warned"] = "warned"
    message: str


class AttemptBegun(Event):
    """Told by whoever watches the worker: from here on, the run is this attempt of its job. What stands before is what
    earlier attempts told, up to the checkpoint from which this one goes on."""

    event: Literal["attempt"] = "attempt"
    number: int


class Restarted(Event):
    """Told by whoever watches the worker: it was killed for its memory, and is started again from its last checkpoint,
    for the `attempt`-th time, to take less. `memory_limit_bytes` is its limit, where there is one."""

    event: Literal["restarted"] = "restarted"
    attempt: int
    reason: str
    memory_limit_bytes: int | None = None


class Stopped(Event):
    """The worker was asked to stop and did, after a checkpoint. Started again, the run goes on."""

    event: Literal["stopped"] = "stopped"
    step: int
    checkpoint: str | None = None


class Failed(Event):
    """The run ended without its result. `advice` says what to change; `crash` is a folder under crash/."""

    event: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    advice: str = ""
    step: int | None = None
    crash: str | None = None


class CanaryAnswer(Wire):
    """What a fixed prompt was answered before the first step and after the last one. `copied_tokens`: the longest run
    of the later answer that is training text word for word; `copied_tokens_before`: of the earlier one."""

    prompt: str
    before: str
    after: str
    copied_tokens: int = 0
    copied_tokens_before: int = 0


class Completed(Event):
    """The run ended well; `result` is the folder with the adapter or the model. `loss` is that of the last step,
    `first_loss` of the first one, `train_loss` a mean over the last ones."""

    event: Literal["completed"] = "completed"
    step: int
    result: str
    loss: Figure = None
    first_loss: Figure = None
    train_loss: Figure = None
    held_out_loss: Figure = None
    held_out_rows: int = 0
    held_out_loss_before: Figure = None
    seconds: float = 0.0
    tokens: int = 0
    gpu_use: Figure = None
    """Mean of the looks at each step that was told."""
    skipped_steps: int = 0
    rollbacks: int = 0
    canary: list[CanaryAnswer] = Field(default_factory=list)
    """Empty where nobody was to be asked."""


TrainingEvent = (
    Started
    | Phase
    | DataReady
    | ModelReady
    | Planned
    | Resumed
    | StepDone
    | Evaluated
    | Sampled
    | StepSkipped
    | RolledBack
    | Relieved
    | CheckpointSaved
    | Paused
    | Continued
    | Warned
    | AttemptBegun
    | Restarted
    | Stopped
    | Failed
    | Completed
)
_EVENT: TypeAdapter[TrainingEvent] = TypeAdapter(Annotated[TrainingEvent, Field(discriminator="event")])


def to_line(event: TrainingEvent) -> bytes:
    """One line of JSON, with its end."""
    return event.model_dump_json().encode() + b"\n"


def from_line(line: bytes) -> TrainingEvent | None:
    """The event; None for what a later version may have written, or half a line."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
