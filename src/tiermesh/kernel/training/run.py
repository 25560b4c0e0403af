"""The loop: a run from its first step to its last, to be read from top to bottom.

Theory of operation. Step s takes the next `effective_batch` positions of the order, whatever the micro-batch is, and
minimises the sum of the losses of all their targets divided by the number of those targets, which is known before. So
neither the micro-batch nor the packing changes what is learned. Between the gradient and the weights stands the guard:

| what a step finds | weights and optimizer | then |
|---|---|---|
| loss and gradient finite and ordinary | updated | the next step |
| an allocation refused | untouched | memory is relieved, the same step again; nothing left to relieve: OutOfMemory |
| the same within the update | put back | memory is relieved, on from the newest state |
| NaN or Inf | untouched | its examples are passed over; too many in a row: NonFinite |
| NaN or Inf in the weights themselves | put back | to the last good state |
| a spike, once | untouched | its examples are passed over |
| a spike again at the next step | put back | to the last good state, past the examples of both; too often: Diverged |
| the run is to stop | untouched | saved as after the step before |

Dropout's random numbers are keyed by seed and position, so that a step that is begun again is the same step. Which
inputs they fall on depends on the micro-batch: with dropout, and only then, that changes what is learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from tiermesh.core.relief import Taken
from tiermesh.core.spikes import Detector, Verdict
from tiermesh.errors import Diverged, NonFinite
from tiermesh.kernel.training import guard, telling
from tiermesh.kernel.training.examining import Examining
from tiermesh.kernel.training.gpu_use import gpu_use
from tiermesh.kernel.training.gradients import Gradient, added_up, seed_of
from tiermesh.kernel.training.keeping import Keeping
from tiermesh.kernel.training.progress import Progress
from tiermesh.kernel.training.relieving import Relieving, refusal
from tiermesh.kernel.training.state import restore
from tiermesh.protocol.training_events import RolledBack, StepSkipped

if TYPE_CHECKING:
    from tiermesh.kernel.training.canary import Canary
    from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
    from tiermesh.kernel.training.data.batches import Source
    from tiermesh.kernel.training.data.order import Order
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.memory import Usage
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.schedules import Schedule
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import CanaryAnswer, TrainingEvent

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
    canary: Canary | None = None
    progress: Progress = field(default_factory=Progress)
    detector: Detector | None = None
    relieving: Relieving = field(init=False)
    keeping: Keeping = field(init=False)
    examining: Examining = field(init=False)
    _step_s: float | None = None

    def __post_init__(self) -> None:
        # Looked up each time: whoever assembles a run may change them afterwards.
        def say(event: TrainingEvent) -> None:
            self.say(event)

        def look() -> Usage:
            return self.look()

        def stopping() -> bool:
            return self.stopping()

        last_good = guard.LastGood()
        self.relieving = Relieving(
            spec=self.spec,
            trainee=self.trainee,
            optimizer=self.optimizer,
            last_good=last_good,
            folder=self.checkpoints.folder.parent,
            look=look,
            trim=self.trim,
            say=say,
        )
        self.keeping = Keeping(
            trainee=self.trainee,
            optimizer=self.optimizer,
            checkpoints=self.checkpoints,
            facts=self._facts,
            say=say,
            last_good=last_good,
        )
        self.examining = Examining(
            spec=self.spec,
            trainee=self.trainee,
            tokenizer=self.tokenizer,
            objective=self.objective,
            source=self.held_out,
            relieving=self.relieving,
            say=say,
            stopping=stopping,
        )

    def go(self) -> Ending:
        """Train until the last step, an early stop, or an order to stop; all of it is in the newest checkpoint then."""
        self.relieving.open_state(self.progress.step)
        if self.canary is not None:
            self.examining.ask_before(self.canary, self.progress)
        self.keeping.offer(self.progress)
        while not self.stopping():
            if self.examining.due(self.progress, self.steps) and not self.examining.examine(self.progress):
                break
            if self._saving_due():
                self.keeping.save(self.progress)
            if self._finished():
                self._check_learned()
                self._take_best()
                return "done"
            if not self._take_step():
                break
            self.relieving.look_after(self.progress.step)
            self.wait_while_paused(self.progress.step)
        self.keeping.save(self.progress)
        return "stopped"

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, by now."""
        return self.relieving.micro_batch

    def take_up(self, snapshot: Snapshot) -> None:
        """Go on from a checkpoint."""
        self._take(snapshot)
        self.relieving.taken = Taken.from_dict(snapshot.facts["relief"])
        self.relieving.apply()
        # An earlier version did not say.
        self.keeping.taken_up(self.progress, snapshot.facts.get("good_until", 0))

    def canary_answers(self) -> list[CanaryAnswer] | None:
        """At the end: what the fixed prompts are answered, beside what they were before. None: dropped, to stop."""
        canary = self.canary
        if canary is None:
            return []
        return self.relieving.retried(lambda: canary.compared(self.progress, self.stopping), self.progress.step)

    def tighten(self) -> None:
        """The system killed the process for its memory: go on with less."""
        self.relieving.tighten(self.progress.step)

    def _take_step(self) -> bool:
        """One step; false when it was dropped because the run is to stop."""
        began = time.monotonic()
        first = self.progress.next_position()
        end = first + self.spec.effective_batch
        gradient = self.relieving.retried(lambda: self._gradient(first), self.progress.step)
        if gradient is None:
            return False
        verdict = self._judge(gradient)
        if verdict is Verdict.GOOD and not self._update(gradient):
            return True
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

    def _update(self, gradient: Gradient) -> bool:
        """False: memory was refused in the midst of it, and the run is at an earlier step again, and smaller."""
        guard.clip(self.trainee.trainables.values(), gradient.norm, self.spec.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.learning_rate * self.schedule(self.progress.step)
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            refused = refusal(error)
        else:
            return True
        snapshot = self.keeping.newest()
        if snapshot is None:
            raise refused
        self.relieving.after_refusal(refused, self.progress.step)
        self._take(snapshot)
        self.keeping.went_back(snapshot.step)
        self.relieving.apply()
        return False

    def _take(self, snapshot: Snapshot) -> None:
        restore(snapshot, self.trainee.trainables, self.optimizer)
        self.progress = Progress.from_dict(snapshot.facts["progress"])
        if self.detector is not None and snapshot.facts["detector"] is not None:
            self.detector.take(snapshot.facts["detector"])

    def _went_well(self, gradient: Gradient, seconds: float) -> None:
        progress = self.progress
        progress.learned(gradient.loss, seconds)
        self._step_s = seconds if self._step_s is None else SPEED_MEMORY * self._step_s + (1 - SPEED_MEMORY) * seconds
        self.keeping.after_step(progress)
        self.keeping.offer(progress)
        if self._due(self.spec.log_interval) or progress.step == self.steps:
            self._tell(gradient, seconds)

    def _pass_over_bad(self, gradient: Gradient, first: int, end: int) -> None:
        progress = self.progress
        self.keeping.doubted()
        progress.bad_in_a_row += 1
        progress.skipped_steps += 1
        progress.skip(first, end)
        where = guard.what_is_bad(self.trainee.trainables.values(), gradient.loss)
        self.say(StepSkipped(step=progress.step, where=where, in_a_row=progress.bad_in_a_row))
        if progress.bad_in_a_row > self.spec.guard.max_bad_steps:
            raise NonFinite(f"{where} not finite in {progress.bad_in_a_row} steps in a row, until step {progress.step}")
        if where == "weights":
            self._roll_back(gradient.loss, first, end)

    def _pass_over_suspect(self, first: int, end: int) -> None:
        self.keeping.doubted()
        self.progress.suspect_from = first
        self.progress.skipped_steps += 1
        self.progress.skip(first, end)
        self.say(StepSkipped(step=self.progress.step, where="spike", in_a_row=1))

    def _roll_back(self, loss: float, first: int, end: int) -> None:
        """To the last good state; positions `first` to `end` are not shown again."""
        progress = self.progress
        if progress.rollbacks >= self.spec.guard.max_rollbacks:
            raise Diverged(
                f"the loss jumped again at step {progress.step}, after {progress.rollbacks} returns to a good state"
            )
        snapshot = self.keeping.good()
        if snapshot is None:
            raise Diverged(f"the loss jumped at step {progress.step}, before there was a state to go back to")
        at = progress.step
        self.keeping.return_to(snapshot)
        self.relieving.apply()
        progress.skip(first, end)
        progress.step, progress.position = snapshot.step, snapshot.position
        progress.rollbacks, progress.suspect_from = progress.rollbacks + 1, None
        if self.detector is not None:
            self.detector.suspects = 0
        self.say(RolledBack(step=at, to_step=snapshot.step, loss=loss, first_position=first, last_position=end - 1))
        # What was learned about this data must survive a kill, and the run is what one taken up from here would be.
        self.keeping.save(self.progress)
        self.keeping.offer(progress)

    def _facts(self) -> dict[str, Any]:
        """What a state is besides its tensors."""
        return {
            "progress": asdict(self.progress),
            "relief": self.relieving.taken.to_dict(),
            "detector": None if self.detector is None else self.detector.to_dict(),
            "precision": self.trainee.precision,
            "conditions": dict(self.conditions),
            "good_until": self.keeping.good_until,
        }

    def _due(self, interval: int | None) -> bool:
        return interval is not None and self.progress.step % interval == 0

    def _finished(self) -> bool:
        return self.progress.step >= self.steps or self.examining.is_past_best(self.progress)

    def _check_learned(self) -> None:
        """A run whose steps were all passed over gives nothing, and must not look as if it did."""
        if self.progress.loss is None:
            raise NonFinite(f"none of the {self.progress.step} steps was finite and ordinary: nothing was learned")

    def _saving_due(self) -> bool:
        if self.examining.has_new_best(self.progress) and (self.spec.early_stop or self.keeping.is_cheap()):
            return True
        return self.progress.step > 0 and (self._finished() or self._due(self.spec.save_interval))

    def _take_best(self) -> None:
        """A run that may stop early gives the weights of its lowest held-out loss, not those of its end."""
        path = self.checkpoints.best() if self.progress.evaluations_since_best > 0 else None
        if self.spec.early_stop is not None and path is not None:
            restore(self.checkpoints.read(path), self.trainee.trainables, self.optimizer)
            self.progress.held_out = self.progress.best

    def _tell(self, gradient: Gradient, seconds: float) -> None:
        assert self._step_s is not None
        busy = gpu_use(self.trainee.device)
        self.progress.looked_at_gpu(busy)
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
                gpu_use=busy,
            )
        )
