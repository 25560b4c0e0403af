"""The figures of a run as curves: in TensorBoard's files, or sent to Weights & Biases when the spec says so."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from typing import Any

from tiermesh.errors import EnvironmentUnfit
from tiermesh.kernel.training.events import Listener
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import Completed, Evaluated, Failed, Sampled, StepDone, Stopped, TrainingEvent

STEP_CURVES = (
    "loss",
    "perplexity",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "utilisation",
    "memory_bytes",
    "gpu_use",
    "skipped_steps",
    "rollbacks",
)


def sinks(spec: TrainingSpec, folder: RunFolder, first_step: int) -> list[Listener]:
    """The listeners that the spec asks for; `first_step` are done. Raises `EnvironmentUnfit` for a missing library."""
    made: list[Listener] = []
    if spec.tensorboard:
        made.append(_tensorboard(folder, first_step))
    if spec.wandb is not None:
        made.append(_wandb(spec, spec.wandb, folder))
    return made


def curves_of(event: TrainingEvent) -> Iterator[tuple[str, float]]:
    """Name and value of the points that an event adds, at its `step`."""
    match event:
        case StepDone():
            values = event.model_dump(include=set(STEP_CURVES))
            yield from ((f"train/{name}", values[name]) for name in STEP_CURVES if values[name] is not None)
        case Evaluated():
            for name, value in (("loss", event.loss), ("perplexity", event.perplexity)):
                if value is not None:
                    yield f"held_out/{name}", value


def _tensorboard(folder: RunFolder, first_step: int) -> Listener:
    """Steps that a stopped worker had drawn beyond its last checkpoint are taken back."""
    writer = _library("torch.utils.tensorboard", "tensorboard", "tensorboard").SummaryWriter(
        str(folder.tensorboard), purge_step=first_step + 1 if first_step else None
    )

    def draw(event: TrainingEvent) -> None:
        for name, value in curves_of(event):
            writer.add_scalar(name, value, event.step)  # type: ignore[union-attr]
        if isinstance(event, Sampled):
            writer.add_text(event.prompt[:80], event.text, event.step)
        if isinstance(event, Evaluated | Completed | Failed | Stopped):
            writer.flush()

    return draw


def _wandb(spec: TrainingSpec, project: str, folder: RunFolder) -> Listener:
    """One run of theirs for one folder of ours, also over restarts."""
    name = hashlib.sha256(str(folder.path).encode()).hexdigest()[:16]
    library = _library("wandb", "wandb", "wandb")
    run = library.init(
        project=project, id=name, resume="allow", dir=str(folder.path), name=folder.path.name, config=spec.model_dump()
    )

    def send(event: TrainingEvent) -> None:
        if points := dict(curves_of(event)):
            run.log(points, step=event.step)  # type: ignore[union-attr]
        if isinstance(event, Completed | Failed | Stopped):
            run.finish(exit_code=0 if isinstance(event, Completed) else 1)

    return send


def _library(module: str, package: str, field: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentUnfit(
            f"{field}: the package {package} is not installed here; pip install {package}, or leave {field} out"
        ) from error
