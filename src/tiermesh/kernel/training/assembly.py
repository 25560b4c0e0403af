"""A run folder's plan becomes a run that is ready to go: model, data, optimizer, and where it was when it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiermesh.core.spikes import Detector, Sensitivity
from tiermesh.errors import BadData
from tiermesh.kernel.training import models, optimizers, schedules
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
from tiermesh.kernel.training.data.dataset import Dataset, open_dataset
from tiermesh.kernel.training.data.order import Order
from tiermesh.kernel.training.events import Events
from tiermesh.kernel.training.loss import Objective, TokenLoss
from tiermesh.kernel.training.memory import Memory, trim
from tiermesh.kernel.training.models import Trainee
from tiermesh.kernel.training.orders import Orders
from tiermesh.kernel.training.preference import PairLoss
from tiermesh.kernel.training.result import Provenance
from tiermesh.kernel.training.run import Run, steps_of
from tiermesh.kernel.training.state import Conditions, differences
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import DataReady, ModelReady, Phase, Planned, Resumed, TrainingEvent, Warned

log = logging.getLogger(__name__)

CACHE_VARIABLE = "TIERMESH_CACHE"
"""Names the folder where tokens are kept for the next run on the same data; without it they lie in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A plan's parts in memory."""

    folder: RunFolder
    plan: RunPlan
    trainee: Trainee
    tokenizer: Any
    data: Dataset
    objective: Objective
    begun: Snapshot | None
    checkpoints: Checkpoints

    def provenance(self, run: Run) -> Provenance:
        """For the result's card."""
        plan, progress = self.plan, run.progress
        return Provenance(plan, progress, self.data.train.digest, self.data.report, self.trainee.precision)


def assemble(folder: RunFolder, plan: RunPlan, say: Callable[[TrainingEvent], None]) -> Assembly:
    """Load model and data, and the newest checkpoint. Raises the failures of `tiermesh.errors`, and what
    `failures.translate` makes failures of."""
    spec, model_folder = plan.spec, Path(plan.model_path)
    checkpoints = Checkpoints(folder.checkpoints, keep_last=spec.keep_last, keep_best=spec.keep_best)
    begun = checkpoints.newest()
    for damaged in checkpoints.damaged:
        say(Warned(message=f"{damaged.path.name}: {damaged.reason}; an earlier checkpoint is used"))
    say(Phase(phase="data", state="started"))
    tokenizer = models.load_tokenizer(model_folder)
    data = _data(folder, plan, tokenizer, say)
    say(Phase(phase="data", state="completed"))
    say(Phase(phase="model", state="started", detail=spec.model_name))
    trainee = models.load(spec, model_folder, None if begun is None else begun.facts["precision"])
    say(
        ModelReady(
            architecture=type(trainee.causal).__name__,
            parameters=sum(one.numel() for one in trainee.model.parameters()),
            trainable=sum(one.numel() for one in trainee.trainables.values()),
            precision=trainee.precision,
            checkpointing=trainee.checkpointing,
        )
    )
    say(Phase(phase="model", state="completed"))
    return Assembly(
        folder=folder,
        plan=plan,
        trainee=trainee,
        tokenizer=tokenizer,
        data=data,
        objective=PairLoss(spec.dpo.beta) if spec.task == "preference" else TokenLoss(),
        begun=begun,
        checkpoints=checkpoints,
    )


def ready(parts: Assembly, events: Events, orders: Orders, memory: Memory) -> Run:
    """The run, where it was when it stopped last, or at its beginning."""
    spec, source = parts.plan.spec, parts.data.train
    steps = steps_of(spec, source.rows)
    warmup_steps = spec.warmup_steps(steps)
    conditions = Conditions.here(
        spec.model_dump(mode="json"),
        model_digest=parts.plan.model_digest,
        data_digest=source.digest,
        packer="1",
        device=parts.trainee.device.type,
    )
    run = Run(
        spec=spec,
        trainee=parts.trainee,
        tokenizer=parts.tokenizer,
        objective=parts.objective,
        source=source,
        held_out=parts.data.held_out,
        order=Order(spec.seed, source.rows),
        optimizer=_optimizer(spec, parts.trainee),
        schedule=schedules.BUILT_IN[spec.scheduler.name](steps, warmup_steps, **spec.scheduler.options),
        steps=steps,
        checkpoints=parts.checkpoints,
        say=events.say,
        conditions=conditions.to_dict(),
        stopping=lambda: orders.stopping,
        look=memory.look,
        trim=trim,
        detector=_detector(spec),
    )
    if parts.begun is not None:
        _take_up(run, parts.begun, conditions, events)
    micro_batch, _ = run.taken.split(spec.micro_batch_size, spec.gradient_accumulation_steps)
    events.say(
        Planned(
            steps=steps,
            first_step=run.progress.step,
            effective_batch=spec.effective_batch,
            micro_batch_size=micro_batch,
            warmup_steps=warmup_steps,
        )
    )
    return run


def _take_up(run: Run, begun: Snapshot, conditions: Conditions, events: Events) -> None:
    found = differences(Conditions.from_dict(begun.facts["conditions"]), conditions)
    run.take_up(begun)
    events.say(Resumed(step=begun.step, checkpoint=f"step-{begun.step:08d}", differences=found))


def _data(folder: RunFolder, plan: RunPlan, tokenizer: Any, say: Callable[[TrainingEvent], None]) -> Dataset:
    cache = os.environ.get(CACHE_VARIABLE)
    data = open_dataset(
        plan.spec,
        Path(plan.data_path),
        tokenizer,
        cache=Path(cache) / "tokens" if cache else folder.path / "data",
        eval_data=None if plan.eval_path is None else Path(plan.eval_path),
        processes=torch.get_num_threads(),
        on_progress=lambda done, total: say(Phase(phase="data", state="started", done=done, total=total, unit="bytes")),
    )
    if data.train.rows == 0:
        raise BadData(f"{plan.data_path} leaves nothing to train on")
    known = {name: value for name, value in data.report.items() if name in DataReady.model_fields}
    say(DataReady(**{"tokens": 0, "rows": data.train.rows} | known))
    return data


def _optimizer(spec: TrainingSpec, trainee: Trainee) -> torch.optim.Optimizer:
    groups = optimizers.grouped(trainee.trainables.values(), spec.weight_decay)
    return optimizers.BUILT_IN[spec.optimizer.name](groups, spec.learning_rate, **spec.optimizer.options)


def _detector(spec: TrainingSpec) -> Detector | None:
    return None if spec.guard.spike_z is None else Detector(Sensitivity(z=spec.guard.spike_z))
