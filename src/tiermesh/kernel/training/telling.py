"""What a run says of itself, put into events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiermesh.kernel.training.evaluation import perplexity
from tiermesh.protocol.training_events import Evaluated, StepDone

if TYPE_CHECKING:
    from tiermesh.kernel.training.evaluation import HeldOut
    from tiermesh.kernel.training.gradients import Gradient
    from tiermesh.kernel.training.progress import Progress


def step_done(
    progress: Progress,
    gradient: Gradient,
    *,
    steps: int,
    rows: int,
    rate: float,
    seconds: float,
    usual_s: float,
    memory_bytes: int,
    gpu_use: float | None,
) -> StepDone:
    """Of the step that took `seconds`; `usual_s` is what one takes on average, `rate` what it learned at."""
    return StepDone(
        step=progress.step,
        steps=steps,
        epoch=progress.position / rows,
        loss=gradient.loss,
        perplexity=perplexity(gradient.loss),
        learning_rate=rate,
        grad_norm=gradient.norm,
        tokens=progress.tokens,
        tokens_per_s=gradient.tokens / seconds,
        utilisation=gradient.tokens / gradient.positions,
        step_s=seconds,
        memory_bytes=memory_bytes,
        gpu_use=gpu_use,
        eta_s=usual_s * (steps - progress.step),
        skipped_steps=progress.skipped_steps,
        rollbacks=progress.rollbacks,
    )


def evaluated(progress: Progress, found: HeldOut) -> Evaluated:
    """Of the evaluation that `progress` has heard of last."""
    return Evaluated(
        step=progress.step,
        loss=found.loss,
        perplexity=found.perplexity,
        tokens=int(found.targets),
        best=progress.evaluations_since_best == 0,
    )
