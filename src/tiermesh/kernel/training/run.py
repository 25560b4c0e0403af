"""The loop: a run from its first step to its last, to be read from top to bottom.

Theory of operation. Step s takes the next `effective_batch` positions of the order, whatever the micro-batch is, and
minimises the sum of the losses of all their targets divided by the number of those targets, which is known before. So
neither the micro-batch nor the packing changes what is learned. Between the gradient and the weights stands the guard:

| what a step finds | weights and optimizer | then |
|---|---|---|
| loss and gradient finite and ordinary | updated | the next step |
| an allocation refused | untouched | memory is relieved, the same step again; nothing left to relieve: OutOfMemory |
| NaN or Inf | untouched | its examples are passed over; too many in a row: NonFinite |
| NaN or Inf in the weights themselves | put back | to the last good state |
| a spike, once | untouched | its examples are passed over |
| a spike again at the next step | put back | to the last good state, past the examples of both; too often: Diverged |
| the run is to stop | untouched | saved as after the step before |

Dropout's random numbers are keyed by seed and position, so that a step that is begun again is the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from tiermesh.core.relief import Level, Taken
from tiermesh.core.spikes import Detector, Verdict
from tiermesh.errors import Diverged, NonFinite
from tiermesh.kernel.training import evaluation, guard, telling
from tiermesh.kernel.training.failures import is_out_of_memory
from tiermesh.kernel.training.gradients import Gradient, added_up, seed_of
from tiermesh.kernel.training.progress import Progress
from tiermesh.kernel.training.relieving import Relieving
from tiermesh.kernel.training.state import capture, restore
from tiermesh.protocol.training_events import (
    CheckpointSaved,
    Phase,
    RolledBack,
    Sampled,
    StepSkipped,
)

if TYPE_CHECKING:
    from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
    from tiermesh.kernel.training.data.batches import Source
    from tiermesh.kernel.training.data.order import Order
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.memory import Usage
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.schedules import Schedule
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import TrainingEvent

T = TypeVar("T")
Ending = Literal["done", "stopped"]

SPEED_MEMORY = 0.9
"""Of the mean that the time left is reckoned from: about the last ten steps."""


@dataclass(slots=True, kw_only=True)
class Run:
    """One process's share of a training run. Everything it works with is given to it.

    `conditions` are stored with each checkpoint. `stopping` is asked between micro-batches; `look` tells how much
    memory is used, `trim` gives what is freed back to the system.
    """

    spec: TrainingSpec
    trainee: Trainee
    tokenizer: Any
    objective: Objective
    source: Source[Any]
    held_out: Source[Any] | None
    order: Order
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    steps: int
    checkpoints: Checkpoints
    say: Callable[[TrainingEvent], None]
    conditions: Mapping[str, Any]
    stopping: Callable[[], bool]
    look: Callable[[], Usage]
    trim: Callable[[], None]
    wait_while_paused: Callable[[int], None] = lambda step: None
    progress: Progress = field(default_factory=Progress)
    detector: Detector | None = None
    last_good: guard.LastGood = field(default_factory=guard.LastGood)
    relieving: Relieving = field(init=False)
    _step_s: float | None = None
    _saved_at: int | None = None

    def __post_init__(self) -> None:
        folder = self.checkpoints.folder.parent
        self.relieving = Relieving(spec=self.spec, trainee=self.trainee, folder=folder)

    def go(self) -> Ending:
        """Train until the last step, an early stop, or an order to stop; all of it is in the newest checkpoint then."""
        progress = self.progress
        self._keep_in_memory()
        while not self.stopping():
            if self._evaluation_due() and not self._evaluate():
                break
            if self._saving_due():
                self.save()
            if self._finished():
                self._check_learned()
                self._take_best()
                return "done"
            if not self._take_step():
                break
            self._look_after_memory()
            self.wait_while_paused(progress.step)
        self.save()
        return "stopped"

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, by now."""
        return self.relieving.micro_batch

    def take_up(self, snapshot: Snapshot) -> None:
        """Go on from a checkpoint."""
        restore(snapshot, self.trainee.trainables, self.optimizer)
        self.progress = Progress.from_dict(snapshot.facts["progress"])
        self.relieving.taken = Taken.from_dict(snapshot.facts["relief"])
        if self.detector is not None and snapshot.facts["detector"] is not None:
            self.detector.take(snapshot.facts["detector"])
        self.relieving.apply(self.optimizer)
        self._saved_at = self.progress.step

    def tighten(self) -> None:
        """The system killed the process for its memory: go on with less."""
        self.relieving.tighten(self.optimizer, self.look().limit_bytes, step=self.progress.step)

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this very state."""
        if self._saved_at == self.progress.step:
            return
        began = time.monotonic()
        path = self.checkpoints.save(self._snapshot(copy=False))
        self._saved_at = self.progress.step
        size = sum(file.stat().st_size for file in path.iterdir())
        seconds = time.monotonic() - began
        self.say(CheckpointSaved(step=self.progress.step, name=path.name, seconds=seconds, size_bytes=size))

    def _take_step(self) -> bool:
        """One step; false when it was dropped because the run is to stop."""
        began = time.monotonic()
        first = self.progress.next_position()
        end = first + self.spec.effective_batch
        gradient = self._with_relief(lambda: self._gradient(first))
        if gradient is None:
            return False
        verdict = self._judge(gradient)
        if verdict is Verdict.GOOD:
            self._update(gradient)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.position = end
        self.progress.tokens += gradient.tokens
        match verdict:
            case Verdict.GOOD:
                self._went_well(gradient, time.monotonic() - began)
            case None:
                self._pass_over_bad(gradient, first, end)
            case Verdict.SUSPECT:
                self._pass_over_suspect(first, end)
            case Verdict.SPIKE:
                self._roll_back(gradient.loss, self.progress.suspect_from or first, end)
        return True

    def _with_relief(self, work: Callable[[], T]) -> T:
        """Do what changes no weight, again as often as memory must be relieved for it."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Only here: the stack that the error holds is full of tensors.
                error.__traceback__ = None
                refused = error
            self.optimizer.zero_grad(set_to_none=True)
            if not self._relieve(Level.CRITICAL, None, refused=True):
                raise refused

    def _gradient(self, first: int) -> Gradient | None:
        """Of the step at this position, in the parameters; None, and nothing there, when the run is to stop."""
        rows = self.order.rows_at(first, self.spec.effective_batch)
        torch.manual_seed(seed_of(self.spec.seed, first))
        gradient = added_up(
            self.trainee,
            self.objective,
            self.source,
            rows,
            self.micro_batch,
            epoch=first // self.source.rows,
            stopping=self.stopping,
        )
        if gradient is None:
            self.optimizer.zero_grad(set_to_none=True)
        return gradient

    def _judge(self, gradient: Gradient) -> Verdict | None:
        """None: not finite."""
        if not gradient.finite:
            return None
        return Verdict.GOOD if self.detector is None else self.detector.judge(gradient.loss, gradient.norm)

    def _update(self, gradient: Gradient) -> None:
        guard.clip(self.trainee.trainables.values(), gradient.norm, self.spec.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()

    def _rate(self) -> float:
        return self.spec.learning_rate * self.schedule(self.progress.step)

    def _went_well(self, gradient: Gradient, seconds: float) -> None:
        progress = self.progress
        progress.bad_in_a_row, progress.suspect_from = 0, None
        progress.loss, progress.seconds = gradient.loss, progress.seconds + seconds
        self._step_s = seconds if self._step_s is None else SPEED_MEMORY * self._step_s + (1 - SPEED_MEMORY) * seconds
        self.last_good.after_step()
        self._keep_in_memory()
        if self._due(self.spec.log_interval) or progress.step == self.steps:
            self._tell(gradient, seconds)

    def _pass_over_bad(self, gradient: Gradient, first: int, end: int) -> None:
        progress = self.progress
        progress.bad_in_a_row += 1
        progress.skipped_steps += 1
        progress.skip(first, end)
        where = self._what_is_bad(gradient)
        self.say(StepSkipped(step=progress.step, where=where, in_a_row=progress.bad_in_a_row))
        if progress.bad_in_a_row > self.spec.guard.max_bad_steps:
            raise NonFinite(
                f"{where} not finite in {progress.bad_in_a_row} steps in a row, until step {progress.step}: "
                "lower learning_rate, or set precision: fp32"
            )
        if where == "weights":
            self._roll_back(gradient.loss, first, end)

    def _what_is_bad(self, gradient: Gradient) -> str:
        if not all(bool(torch.isfinite(one).all()) for one in self.trainee.trainables.values()):
            return "weights"
        return "gradients" if math.isfinite(gradient.loss) else "loss"

    def _pass_over_suspect(self, first: int, end: int) -> None:
        self.last_good.doubted()
        self.progress.suspect_from = first
        self.progress.skipped_steps += 1
        self.progress.skip(first, end)
        self.say(StepSkipped(step=self.progress.step, where="spike", in_a_row=1))

    def _roll_back(self, loss: float, first: int, end: int) -> None:
        """To the last good state; positions `first` to `end` are not shown again."""
        progress = self.progress
        if progress.rollbacks >= self.spec.guard.max_rollbacks:
            raise Diverged(
                f"the loss jumped again at step {progress.step}, after {progress.rollbacks} returns to a good state: "
                "lower learning_rate, or look at the data there"
            )
        snapshot = self.last_good.good or self._from_disk()
        restore(snapshot, self.trainee.trainables, self.optimizer)
        self.relieving.apply(self.optimizer)
        self.checkpoints.forget_after(snapshot.step)
        self._saved_at = None
        at = progress.step
        progress.skip(first, end)
        progress.step, progress.position = snapshot.step, snapshot.position
        progress.rollbacks, progress.suspect_from = progress.rollbacks + 1, None
        self.last_good.doubted()
        if self.detector is not None:
            self.detector.suspects = 0
        self.say(RolledBack(step=at, to_step=snapshot.step, loss=loss, first_position=first, last_position=end - 1))

    def _from_disk(self) -> Snapshot:
        snapshot = self.checkpoints.newest()
        if snapshot is None:
            raise Diverged(f"the loss jumped at step {self.progress.step}, before there was a state to go back to")
        return snapshot

    def _keep_in_memory(self) -> None:
        if self.last_good.wanted(self.progress.step) and self._state_bytes() <= guard.IN_MEMORY_BYTES:
            self.last_good.offer(self._snapshot(copy=True))

    def _state_bytes(self) -> int:
        """Masters, and two figures for each, which is what most optimizers keep."""
        return 3 * sum(one.numel() * one.element_size() for one in self.trainee.trainables.values())

    def _snapshot(self, *, copy: bool) -> Snapshot:
        facts = {
            "progress": asdict(self.progress),
            "relief": self.relieving.taken.to_dict(),
            "detector": None if self.detector is None else self.detector.to_dict(),
            "precision": self.trainee.precision,
            "conditions": dict(self.conditions),
        }
        return capture(
            self.trainee.trainables,
            self.optimizer,
            step=self.progress.step,
            position=self.progress.position,
            loss=self.progress.held_out if self.progress.evaluated_at == self.progress.step else None,
            facts=facts,
            copy=copy,
        )

    def _look_after_memory(self) -> None:
        usage = self.look()
        self._relieve(usage.level, usage.share)

    def _relieve(self, level: Level, share: float | None, *, refused: bool = False) -> bool:
        """Do what is to be done at this level, if anything; false: nothing was."""
        step, limit_bytes = self.progress.step, self.look().limit_bytes
        relieved = self.relieving.take(level, share, self.optimizer, limit_bytes, step=step, refused=refused)
        if relieved is None:
            return False
        self.trim()
        self.say(relieved)
        return True

    def _due(self, interval: int | None) -> bool:
        return interval is not None and self.progress.step % interval == 0

    def _finished(self) -> bool:
        stop = self.spec.early_stop
        learned_enough = stop is not None and self.progress.evaluations_since_best >= stop.patience
        return self.progress.step >= self.steps or learned_enough

    def _check_learned(self) -> None:
        """A run whose steps were all passed over gives nothing, and must not look as if it did."""
        if self.progress.loss is None:
            raise NonFinite(f"none of the {self.progress.step} steps was finite and ordinary: nothing was learned")

    def _saving_due(self) -> bool:
        progress = self.progress
        new_best = progress.evaluated_at == progress.step and progress.evaluations_since_best == 0
        if self.spec.early_stop is not None and new_best:
            return True
        return progress.step > 0 and (self._finished() or self._due(self.spec.save_interval))

    def _take_best(self) -> None:
        """A run that may stop early gives the weights of its lowest held-out loss, not those of its end."""
        path = self.checkpoints.best() if self.progress.evaluations_since_best > 0 else None
        if self.spec.early_stop is not None and path is not None:
            restore(self.checkpoints.read(path), self.trainee.trainables, self.optimizer)
            self.progress.held_out = self.progress.best

    def _evaluation_due(self) -> bool:
        """Before the first step, at the intervals, after the last step."""
        step = self.progress.step
        due = step in (0, self.steps) or self._due(self.spec.eval_interval)
        return due and self.progress.evaluated_at != step

    def _evaluate(self) -> bool:
        """Held-out loss and sample answers, as of now; false when it was dropped because the run is to stop."""
        progress = self.progress
        if self.held_out is not None:
            self.say(Phase(phase="evaluate", state="started"))
            found = self._with_relief(self._look_at_held_out)
            if found is None:
                self.say(Phase(phase="evaluate", state="interrupted"))
                return False
            stop = self.spec.early_stop
            progress.evaluated(found.loss, stop.min_delta if stop else 0.0)
            self.say(telling.evaluated(progress, found))
            self.say(Phase(phase="evaluate", state="completed"))
        for prompt, text in evaluation.answers(
            self.trainee, self.tokenizer, self.spec.samples, self.spec.sample_tokens, stopping=self.stopping
        ):
            self.say(Sampled(step=progress.step, prompt=prompt, text=text))
        if self.stopping():
            return False
        progress.evaluated_at = progress.step
        self._saved_at = None
        return True

    def _look_at_held_out(self) -> evaluation.HeldOut | None:
        source, size = self.held_out, self.micro_batch
        assert source is not None
        return evaluation.held_out(self.trainee, self.objective, source, size, stopping=self.stopping)

    def _tell(self, gradient: Gradient, seconds: float) -> None:
        assert self._step_s is not None
        self.say(
            telling.step_done(
                self.progress,
                gradient,
                steps=self.steps,
                rows=self.source.rows,
                rate=self.optimizer.param_groups[0]["lr"],
                seconds=seconds,
                usual_s=self._step_s,
                memory_bytes=self.look().used_bytes,
            )
        )


def steps_of(spec: TrainingSpec, rows: int) -> int:
    """Of the whole run."""
    wanted = math.ceil(spec.num_epochs * rows / spec.effective_batch)
    return wanted if spec.max_steps is None else min(wanted, spec.max_steps)
