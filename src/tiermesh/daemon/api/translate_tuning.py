"""Between OpenAI's fine-tuning jobs and this mesh's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tiermesh.adapters.sent_files import SentFile
from tiermesh.daemon.api.refusing import refuse_unknown, refused
from tiermesh.protocol.jobs import DataRef, JobReport
from tiermesh.protocol.openai_tuning import (
    FILE_PREFIX,
    JOB_PREFIX,
    DpoHyperparameters,
    FileObject,
    Hyperparameters,
    JobStatus,
    Level,
    Page,
    PageQuery,
    TuningCheckpoint,
    TuningError,
    TuningEvent,
    TuningJob,
    TuningRequest,
    file_id,
)
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import (
    CheckpointSaved,
    Completed,
    Evaluated,
    Failed,
    Planned,
    Restarted,
    Resumed,
    RolledBack,
    StepDone,
    StepSkipped,
    TrainingEvent,
    Warned,
    from_line,
)

SUPERVISED_RATE = 2e-4
"""What a multiplier of 1 means: adapters bear 1e-4 to 5e-4."""
DPO_RATE = 5e-5
"""Preferences are learnt from both answers at once, and stray soon at more."""
MICRO_BATCH = 4
"""Rows computed at once, at most; the rest of a batch is accumulated."""
RESULT_PREFIX = f"{FILE_PREFIX}result-"
"""Of the file of figures that a job leaves; the job's id follows."""
RESULT_COLUMNS = ("step", "train_loss", "learning_rate", "valid_loss")
SUFFIX_ENDS = "-._:"

_STATUS: Mapping[str, JobStatus] = {
    "estimating": "validating_files",
    "waiting": "paused",
    "queued": "queued",
    "running": "running",
    "cancelling": "running",
    "completed": "succeeded",
    "failed": "failed",
    "refused": "failed",
    "cancelled": "cancelled",
}
Entry = TypeVar("Entry", FileObject, TuningJob, TuningEvent, TuningCheckpoint)
Lines = Iterable[tuple[int, bytes]]


def job_key(ident: str) -> str:
    """Ours, from OpenAI's; a plain id or a name is itself."""
    return ident.removeprefix(JOB_PREFIX)


def spec_of(asked: TuningRequest) -> dict[str, Any]:
    """A training spec; its data travels beside it. Raises `InvalidInput` that names what a mesh can't do."""
    refuse_unknown(asked, set())
    how = _hyperparameters(asked)
    is_dpo = isinstance(how, DpoHyperparameters)
    rate = (DPO_RATE if is_dpo else SUPERVISED_RATE) * (how.learning_rate_multiplier or 1.0)
    spec: dict[str, Any] = {
        "task": "preference" if is_dpo else "finetune",
        "method": "lora",
        "model_name": asked.model,
        "learning_rate": rate,
    }
    if how.n_epochs is not None:
        spec["num_epochs"] = how.n_epochs
    if how.batch_size is not None:
        spec |= _batch(how.batch_size)
    if isinstance(how, DpoHyperparameters) and how.beta is not None:
        spec["dpo"] = {"beta": how.beta}
    if asked.seed is not None:
        spec["seed"] = asked.seed
    return spec


def label_of(suffix: str | None) -> str | None:
    """A job's name, from what the caller wants the model's to end with."""
    plain = re.sub(r"[^A-Za-z0-9._:-]+", "-", suffix or "").strip(SUFFIX_ENDS)
    return plain or None


def told_file(entry: SentFile) -> FileObject:
    """As OpenAI tells it."""
    return FileObject(
        id=entry.id,
        bytes=entry.size_bytes,
        created_at=int(entry.created_at),
        filename=entry.name,
        purpose=entry.purpose,
    )


def told_job(report: JobReport, now: float) -> TuningJob:
    """As OpenAI tells it. `now` is Unix time."""
    spec = report.spec
    over = report.is_over
    completed = report.state == "completed"
    method = "dpo" if spec.get("task") == "preference" else "supervised"
    how = _told_hyperparameters(spec, method)
    eta_s = report.progress.eta_s
    return TuningJob(
        id=JOB_PREFIX + report.id,
        created_at=int(report.submitted_at),
        status=_STATUS[report.state],
        model=report.model,
        training_file=_told_file(report.data),
        validation_file=None if report.eval_data is None else _told_file(report.eval_data),
        method={"type": method, method: {"hyperparameters": how}},
        hyperparameters=how,
        seed=int(spec.get("seed", 0)),
        suffix=report.name,
        fine_tuned_model=report.name if completed else None,
        finished_at=int(report.ended_at) if over and report.ended_at is not None else None,
        estimated_finish=int(now + eta_s) if report.state == "running" and eta_s else None,
        trained_tokens=int(report.result.get("tokens", 0)) if completed else None,
        error=_error(report),
        result_files=[RESULT_PREFIX + report.id] if completed else [],
    )


def told_events(job: str, lines: Lines, happened: Sequence[tuple[float, str]] = ()) -> list[TuningEvent]:
    """The newest first. `happened`: what the mesh did with the job, with its times."""
    found = [(number, from_line(line)) for number, line in lines]
    told = [(event.at, _told(job, number, event)) for number, event in found if event is not None]
    told += [(at, _said(job, number, at, text)) for number, (at, text) in enumerate(happened)]
    told.sort(key=lambda pair: pair[0])
    return [event for _, event in reversed(told) if event is not None]


def told_checkpoints(report: JobReport, lines: Lines) -> list[TuningCheckpoint]:
    """The newest first, each step once. Only the job's result is served, not what was on the way to it."""
    losses: dict[int, float | None] = {}
    held_out: dict[int, float | None] = {}
    saved: dict[int, CheckpointSaved] = {}
    for _, line in lines:
        match event := from_line(line):
            case StepDone():
                losses[event.step] = event.loss
            case Evaluated():
                held_out[event.step] = event.loss
            case CheckpointSaved():
                saved[event.step] = event
            case _:
                continue
    return [
        TuningCheckpoint(
            id=f"ftckpt-{report.id}-{step}",
            created_at=int(event.at),
            fine_tuned_model_checkpoint=f"{report.name}:ckpt-step-{step}",
            fine_tuning_job_id=JOB_PREFIX + report.id,
            step_number=step,
            metrics={"step": step, "train_loss": losses.get(step), "full_valid_loss": held_out.get(step)},
        )
        for step, event in sorted(saved.items(), reverse=True)
    ]


def result_table(lines: Lines) -> bytes:
    """The run's figures as CSV, a line a step: what OpenAI keeps as a job's result file."""
    rows: dict[int, dict[str, object]] = {}
    for _, line in lines:
        match event := from_line(line):
            case StepDone():
                rows.setdefault(event.step, {}).update(train_loss=event.loss, learning_rate=event.learning_rate)
            case Evaluated():
                rows.setdefault(event.step, {})["valid_loss"] = event.loss
            case _:
                continue
    table = [",".join(RESULT_COLUMNS)]
    for step in sorted(rows):
        cells = (rows[step].get(column) for column in RESULT_COLUMNS[1:])
        table.append(",".join([str(step), *("" if cell is None else repr(cell) for cell in cells)]))
    return ("\n".join(table) + "\n").encode()


def page(entries: Sequence[Entry], asked: PageQuery, usual: int) -> Page:
    """What comes after the entry that the caller has last. Raises `InvalidInput` for one that is not there."""
    begin = 0
    if asked.after:
        places = [at for at, entry in enumerate(entries) if entry.id == asked.after]
        if not places:
            raise refused("after", f"there is no {asked.after!r} in this list")
        begin = places[0] + 1
    part = entries[begin : begin + (asked.limit or usual)]
    return Page(
        data=[entry.model_dump(mode="json") for entry in part],
        first_id=part[0].id if part else None,
        last_id=part[-1].id if part else None,
        has_more=begin + len(part) < len(entries),
    )


def _hyperparameters(asked: TuningRequest) -> Hyperparameters:
    method = asked.method
    if method is None:
        return _known(asked.hyperparameters or Hyperparameters(), "hyperparameters")
    if asked.hyperparameters is not None and method.type != "supervised":
        raise refused("hyperparameters", f"are those of supervised tuning; give method.{method.type}.hyperparameters")
    refuse_unknown(method, {"reinforcement"} if method.type == "reinforcement" else set())
    match method.type:
        case "supervised":
            where = "method.supervised.hyperparameters"
            given = method.supervised.hyperparameters if method.supervised else asked.hyperparameters
            return _known(given or Hyperparameters(), where)
        case "dpo":
            there = method.dpo.hyperparameters if method.dpo else DpoHyperparameters()
            return _known(there, "method.dpo.hyperparameters")
    raise refused("method.type", f"{method.type!r} is not supported by this mesh; there are supervised and dpo")


def _known(how: Hyperparameters, where: str) -> Hyperparameters:
    for name, value in (how.model_extra or {}).items():
        if value is not None:
            raise refused(f"{where}.{name}", "is not supported by this mesh; leave it out")
    return how


def _batch(examples: int) -> dict[str, object]:
    """Rows hold one example each: a batch of so many is what was asked for, and packed rows hold several."""
    micro = max(size for size in range(1, MICRO_BATCH + 1) if examples % size == 0)
    return {"micro_batch_size": micro, "gradient_accumulation_steps": examples // micro, "packing": False}


def _told_file(data: DataRef | None) -> str:
    return "" if data is None else file_id("fine-tune", data.name, data.sha256)


def _told_hyperparameters(spec: Mapping[str, Any], method: str) -> dict[str, Any]:
    def value(name: str) -> Any:
        return spec.get(name, TrainingSpec.model_fields[name].default)

    rate = DPO_RATE if method == "dpo" else SUPERVISED_RATE
    told = {
        "n_epochs": value("num_epochs"),
        "batch_size": value("micro_batch_size") * value("gradient_accumulation_steps"),
        "learning_rate_multiplier": float(f"{value('learning_rate') / rate:.12g}"),
    }
    if method == "dpo":
        dpo = spec.get("dpo") or {}
        told["beta"] = dpo.get("beta", TrainingSpec.model_fields["dpo"].default.beta)
    return told


def _error(report: JobReport) -> TuningError | None:
    if report.state not in ("failed", "refused"):
        return None
    param = "training_file" if report.failure in ("bad_data", "data_unusable") else None
    return TuningError(code=report.failure or report.state, message=report.reason or report.state, param=param)


def _said(job: str, number: int, at: float, text: str) -> TuningEvent:
    return TuningEvent(id=f"ftevent-{job}-m{number}", created_at=int(at), level="info", message=text)


def _told(job: str, number: int, event: TrainingEvent) -> TuningEvent | None:
    """What is worth a line to whoever waits; the rest is in the mesh's own events."""
    level: Level = "info"
    kind, data = "message", {}
    match event:
        case StepDone():
            message = f"Step {event.step}/{event.steps}: training loss={_figure(event.loss)}"
            kind = "metrics"
            data = {"step": event.step, "total_steps": event.steps, "train_loss": event.loss}
        case Evaluated():
            message = f"Step {event.step}: validation loss={_figure(event.loss)}"
            kind, data = "metrics", {"step": event.step, "full_valid_loss": event.loss}
        case Planned():
            message = f"The run has {event.steps} steps of {event.effective_batch} rows"
        case Resumed():
            message = f"The run goes on after step {event.step}"
        case CheckpointSaved():
            message = f"Checkpoint created at step {event.step}"
        case StepSkipped():
            level, message = "warn", f"Step {event.step} was skipped: {event.where} was not finite"
        case RolledBack():
            level, message = "warn", f"The loss jumped at step {event.step}: back to step {event.to_step}"
        case Restarted():
            level, message = "warn", f"The worker was started again: {event.reason}"
        case Warned():
            level, message = "warn", event.message
        case Failed():
            level, message = "error", event.message
        case Completed():
            message = f"The run is done after {event.step} steps"
        case _:
            return None
    return TuningEvent.model_validate(
        {
            "id": f"ftevent-{job}-{number}",
            "created_at": int(event.at),
            "level": level,
            "message": message,
            "type": kind,
            "data": {name: value for name, value in data.items() if value is not None},
        }
    )


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
