"""When a run looks at what it was not trained on, and what it then does and tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tiermesh.kernel.training import evaluation, telling
from tiermesh.protocol.training_events import Phase, Sampled

if TYPE_CHECKING:
    from tiermesh.kernel.training.canary import Canary
    from tiermesh.kernel.training.data.batches import Source
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.progress import Progress
    from tiermesh.kernel.training.relieving import Relieving
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import TrainingEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Examining:
    """Held-out loss and sample answers of one run. Without a `source` there are only answers."""

    spec: TrainingSpec
    trainee: Trainee
    tokenizer: Any
    objective: Objective
    source: Source[Any] | None
    relieving: Relieving
    say: Callable[[TrainingEvent], None]
    stopping: Callable[[], bool]

    def due(self, progress: Progress, steps: int) -> bool:
        """Before the first step, at the intervals, after the last of `steps`."""
        step, interval = progress.step, self.spec.eval_interval
        due = step in (0, steps) or (interval is not None and step % interval == 0)
        return due and progress.evaluated_at != step

    def examine(self, progress: Progress) -> bool:
        """Do it, and note it in `progress`; false when it was dropped because the run is to stop."""
        if self.source is not None and not self._look(self.source, progress):
            return False
        for sample in self.spec.samples:
            for prompt, text in self.relieving.retried(partial(self._answer, sample), progress.step):
                self.say(Sampled(step=progress.step, prompt=prompt, text=text))
        if self.stopping():
            return False
        progress.evaluated_at = progress.step
        return True

    def ask_before(self, canary: Canary, progress: Progress) -> None:
        """Note what the fixed prompts are answered before the first step, unless that is known."""
        if canary.is_due(progress):
            self.say(Phase(phase="evaluate", state="started", detail="canary"))
            self.relieving.retried(lambda: canary.ask_before(progress, self.stopping), progress.step)
            self.say(Phase(phase="evaluate", state="completed", detail="canary"))

    def has_new_best(self, progress: Progress) -> bool:
        """Whether this state is the best until now and to be kept for that. Before the first step it is the model as it
        came, which only an early stop comes back to."""
        if progress.best is None or progress.evaluated_at != progress.step or progress.evaluations_since_best > 0:
            return False
        return self.spec.early_stop is not None or (self.spec.keep_best > 0 and progress.step > 0)

    def is_past_best(self, progress: Progress) -> bool:
        """Whether to stop early."""
        stop = self.spec.early_stop
        return stop is not None and progress.evaluations_since_best >= stop.patience

    def _look(self, source: Source[Any], progress: Progress) -> bool:
        self.say(Phase(phase="evaluate", state="started"))
        found = self.relieving.retried(lambda: self._held_out(source), progress.step)
        if found is None:
            self.say(Phase(phase="evaluate", state="interrupted"))
            return False
        stop = self.spec.early_stop
        progress.evaluated(found.loss, stop.min_delta if stop else 0.0)
        self.say(telling.evaluated(progress, found))
        self.say(Phase(phase="evaluate", state="completed"))
        return True

    def _answer(self, prompt: str) -> list[tuple[str, str]]:
        """With its prompt; nothing when the run is to stop."""
        tokens = self.spec.sample_tokens
        return list(evaluation.answers(self.trainee, self.tokenizer, [prompt], tokens, stopping=self.stopping))

    def _held_out(self, source: Source[Any]) -> evaluation.HeldOut | None:
        size = self.relieving.micro_batch
        return evaluation.held_out(self.trainee, self.objective, source, size, stopping=self.stopping)
