"""A run folder's plan becomes a run that is ready to go: model, data, optimizer, and where it was when it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tiermesh.core.spikes import Detector, Sensitivity
from tiermesh.errors import BadSpec, CheckpointUnusable
from tiermesh.kernel.training import models, plugins
from tiermesh.kernel.training.canary import Canary
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
from tiermesh.kernel.training.compiling import Compiled, Refused, commonest, compile_blocks
from tiermesh.kernel.training.curves import sinks
from tiermesh.kernel.training.data.dataset import Dataset, open_dataset
from tiermesh.kernel.training.data.isolation import leakage
from tiermesh.kernel.training.data.order import Order
from tiermesh.kernel.training.data.packing import PACKER_VERSION
from tiermesh.kernel.training.evaluation import moved
from tiermesh.kernel.training.events import Events
from tiermesh.kernel.training.loss import Objective, OtherLoss, TokenLoss
from tiermesh.kernel.training.memory import Memory, trim
from tiermesh.kernel.training.models import Trainee
from tiermesh.kernel.training.optimizers import grouped
from tiermesh.kernel.training.orders import Orders
from tiermesh.kernel.training.preference import PairLoss
from tiermesh.kernel.training.progress import steps_of
from tiermesh.kernel.training.result import Provenance
from tiermesh.kernel.training.run import Run
from tiermesh.kernel.training.state import Conditions, differences
from tiermesh.kernel.training.watchdog import Heat
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import (
    Continued,
    DataReady,
    ModelReady,
    Paused,
    Phase,
    Planned,
    Resumed,
    TrainingEvent,
    Warned,
)

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


def assemble(folder: RunFolder, plan: RunPlan, say: Callable[[TrainingEvent], None], *, best: bool = False) -> Assembly:
    """Load model and data, and the newest checkpoint or the `best` one. Raises the failures of `tiermesh.errors`, and
    what `failures.translate` makes failures of."""
    spec, model_folder = plan.spec, Path(plan.model_path)
    # The result of an early stop is the best.
    keep_best = spec.keep_best if spec.early_stop is None else max(1, spec.keep_best)
    checkpoints = Checkpoints(folder.checkpoints, keep_last=spec.keep_last, keep_best=keep_best)
    begun = chosen(checkpoints, best=best)
    for damaged in checkpoints.damaged:
        say(Warned(message=f"{damaged.path.name}: {damaged.reason}; an earlier checkpoint is used"))
    objective, readers = objective_of(spec), plugins.readers_for(spec)  # a wrong name fails before anything is loaded
    say(Phase(phase="model", state="started", detail=spec.model_name))
    tokenizer = models.load_tokenizer(model_folder)
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
    say(Phase(phase="data", state="started"))
    packing = spec.packing and spec.task != "preference"
    if packing and leakage(trainee.causal) > 0:
        packing = False
        say(Warned(message=f"{spec.model_name} does not keep packed records apart: each has a row of its own"))
    data = _data(folder, plan, tokenizer, readers, say, packing=packing)
    say(Phase(phase="data", state="completed"))
    _check_context(spec, trainee, data)
    return Assembly(
        folder=folder,
        plan=plan,
        trainee=trainee,
        tokenizer=tokenizer,
        data=data,
        objective=objective,
        begun=begun,
        checkpoints=checkpoints,
    )


def chosen(checkpoints: Checkpoints, *, best: bool) -> Snapshot | None:
    """The newest, or the one of the lowest held-out loss; None: there is none at all."""
    if not best:
        return checkpoints.newest()
    path = checkpoints.best()
    if path is None:
        raise CheckpointUnusable(f"no checkpoint in {checkpoints.folder} has a held-out loss: leave --best out")
    return checkpoints.read(path)


def ready(parts: Assembly, events: Events, orders: Orders, memory: Memory, *, tighten: int = 0) -> Run:
    """The run, where it was when it stopped last, or at its beginning. `tighten`: so many times its
    process was killed for its memory since, so this one takes less."""
    spec, source = parts.plan.spec, parts.data.train
    steps = steps_of(spec, source.rows)
    warmup_steps = spec.warmup_steps(steps)
    conditions = Conditions.here(
        # Of a file of held-out records the content counts, not where it lies.
        spec.model_dump(mode="json") | {"eval_path": parts.plan.eval_digest},
        model_digest=parts.plan.model_digest,
        data_digest=source.digest,
        packer=str(PACKER_VERSION),
        device=parts.trainee.device.type,
    )
    heat = Heat()
    run = Run(
        spec=spec,
        trainee=parts.trainee,
        tokenizer=parts.tokenizer,
        objective=parts.objective,
        source=source,
        held_out=parts.data.held_out,
        order=Order(spec.seed, source.rows),
        optimizer=_optimizer(spec, parts.trainee),
        schedule=plugins.make_schedule(spec.scheduler, steps, warmup_steps),
        steps=steps,
        checkpoints=parts.checkpoints,
        say=events.say,
        conditions=conditions.to_dict(),
        stopping=lambda: orders.stopping,
        look=memory.look,
        trim=trim,
        wait_while_paused=lambda step: _wait(orders, heat, events, step),
        detector=_detector(spec),
        canary=_canary(parts),
    )
    if parts.begun is not None:
        _take_up(run, parts.begun, conditions, events)
    for _ in range(tighten):
        run.tighten()
    if spec.compile:
        _compile(run, events.say)
        conditions = replace(conditions, spec={**conditions.spec, "compile": run.trainee.compiled is not None})
        run.conditions = conditions.to_dict()
    for listener in (*map(plugins.make_callback, spec.callbacks), *sinks(spec, parts.folder, run.progress.step)):
        events.listen(listener)
    events.say(
        Planned(
            steps=steps,
            first_step=run.progress.step,
            effective_batch=spec.effective_batch,
            micro_batch_size=run.micro_batch,
            warmup_steps=warmup_steps,
        )
    )
    return run


def _check_context(spec: TrainingSpec, trainee: Trainee, data: Dataset) -> None:
    """Behind the last position that a model was made for it computes nonsense, or nothing."""
    positions = getattr(trainee.causal.config, "max_position_embeddings", None)
    longest = min(spec.seq_len, data.report["lengths"]["max"])
    if positions is not None and longest > positions:
        raise BadSpec(
            f"seq_len: is {spec.seq_len:,}, and the data has {longest:,} tokens in a row, but {spec.model_name} was "
            f"made for {positions:,}; set seq_len: {positions}"
        )


def _compile(run: Run, say: Callable[[TrainingEvent], None]) -> None:
    """What can't be compiled is told, and runs without."""
    say(Phase(phase="probe", state="started", detail="layers are compiled"))
    most = commonest(run.source, run.order, run.micro_batch)
    match compile_blocks(run.trainee, run.objective, moved(most.batch, run.trainee.device)):
        case Compiled() as compiled:
            say(Phase(phase="probe", state="completed", detail=_told_of(compiled, most.share)))
        case Refused() as refused:
            say(Phase(phase="probe", state="failed", detail="layers are not compiled"))
            say(Warned(message=f"compile: the layers are not compiled, and the run is slower for it: {refused.reason}"))
            if run.spec.attention == "auto":
                models.keep_documents_apart(run.trainee)


def _told_of(compiled: Compiled, share: float) -> str:
    how = "with what an earlier start left" if compiled.was_kept else "and kept for later starts"
    rest = f"; {1 - share:.0%} of the micro-batches have another shape and run uncompiled" if share < 1 else ""
    return f"layers compiled in {compiled.first_s:.1f} s ({how}), a pass then takes {compiled.then_s:.2f} s{rest}"


def _take_up(run: Run, begun: Snapshot, conditions: Conditions, events: Events) -> None:
    found = differences(Conditions.from_dict(begun.facts["conditions"]), conditions)
    run.take_up(begun)
    events.say(Resumed(step=begun.step, checkpoint=f"step-{begun.step:08d}", differences=found))


def _wait(orders: Orders, heat: Heat, events: Events, step: int) -> None:
    reason = "somebody asked for it" if orders.pausing else "the machine is too hot" if heat.is_too_hot() else None
    if reason is not None:
        events.say(Paused(step=step, reason=reason))
        orders.wait_while(lambda: orders.pausing or heat.is_too_hot())
        events.say(Continued(step=step))


def _data(
    folder: RunFolder,
    plan: RunPlan,
    tokenizer: Any,
    readers: Mapping[str, plugins.Reader],
    say: Callable[[TrainingEvent], None],
    *,
    packing: bool,
) -> Dataset:
    cache = os.environ.get(CACHE_VARIABLE)

    def progress(done: float, total: float) -> None:
        say(Phase(phase="data", state="started", done=int(done), total=int(total), unit="bytes"))

    data = open_dataset(
        plan.spec,
        Path(plan.data_path),
        tokenizer,
        cache=Path(cache) / "tokens" if cache else folder.path / "data",
        eval_data=None if plan.eval_path is None else Path(plan.eval_path),
        packing=packing,
        processes=torch.get_num_threads(),
        plugins=readers,
        on_progress=progress,
    )
    told = _told(data)
    for bad in told.bad:
        log.warning("left out: %s", bad)
    say(told)
    return data


def _told(data: Dataset) -> DataReady:
    report = data.report
    lengths = report["lengths"]
    return DataReady(
        records=report["records"],
        bad_records=report["bad_records"] + report["held_out_bad_records"],
        held_out_records=report["held_out"],
        tokens=report["tokens"],
        rows=data.train.rows,
        utilisation=report["fill"],
        length_p50=lengths["p50"],
        length_p95=lengths["p95"],
        length_max=lengths["max"],
        bad=[
            *(f"{report['unit']} {bad['line']} {bad['reason']}" for bad in report["bad"]),
            *(f"eval_path {report['held_out_unit']} {bad['line']} {bad['reason']}" for bad in report["held_out_bad"]),
        ],
        cached=data.corpus.cached,
    )


def objective_of(spec: TrainingSpec) -> Objective:
    """What the run makes small."""
    if spec.task == "preference":
        return PairLoss(spec.dpo.beta)
    return TokenLoss() if spec.loss.name == "cross_entropy" else OtherLoss(plugins.make_loss(spec.loss))


def _optimizer(spec: TrainingSpec, trainee: Trainee) -> torch.optim.Optimizer:
    groups = grouped(trainee.trainables.values(), spec.weight_decay)
    return plugins.make_optimizer(spec.optimizer, groups, spec.learning_rate)


def _canary(parts: Assembly) -> Canary | None:
    if not parts.plan.canary:
        return None
    return Canary(trainee=parts.trainee, tokenizer=parts.tokenizer, corpus=parts.data.corpus)


def _detector(spec: TrainingSpec) -> Detector | None:
    return None if spec.guard.spike_z is None else Detector(Sensitivity(z=spec.guard.spike_z))
