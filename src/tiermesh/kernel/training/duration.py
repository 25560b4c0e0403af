"""How long a run will take: some of all that it does is tried on this machine, and a whole run is added up from it.

    seconds = loading + steps + evaluations + canary + saving

Loading is that of the process that asks, which has just done it. Tried are some steps, evenly from the whole of the
data; some held-out rows, some tokens of an answer; and a checkpoint, or as much of a large one as tells how fast the
disk is. A run that is asked about is thrown away afterwards: its steps learn nothing, but its optimizer has moved.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.core.evaluation import CANARY_PROMPTS, CANARY_TOKENS
from tiermesh.kernel.training import evaluation, guard
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
from tiermesh.kernel.training.evaluation import moved
from tiermesh.kernel.training.keeping import BEST_SHARE, QUICK_S
from tiermesh.kernel.training.state import capture

if TYPE_CHECKING:
    from tiermesh.kernel.training.run import Run

STEPS_S = 22.0
"""Longest time that steps are tried for; with all the rest less than half a minute."""
WARM_STEPS = 2
"""Not among those whose median counts: the first asks the system for its memory, and the second for what is left."""
MAX_STEPS = 12
EXAMINED_ROWS = 4
"""Micro-batches of held-out rows that are tried."""
ANSWERED_TOKENS = 8
SAVED_BYTES = 256 << 20
"""Of a checkpoint, at most; the rest takes in proportion."""
INTERVAL = 0.2
"""Of the time, on both sides: other work on the machine comes and goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Seconds. None: the run would not fit, so no step was tried. `seconds` is all of it, from the start of a worker to
    its result; the others are what it is made of."""

    steps: int | None = None
    step_s: float | None = None
    loading_s: float | None = None
    evaluation_s: float | None = None
    saving_s: float | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None


def estimate_duration(run: Run, loading_s: float) -> Duration:
    """Try some of what is left of a run, which is not to be used afterwards. `loading_s` is what it took until now."""
    left = run.steps - run.progress.step
    times = _step_times(run)
    if not times:
        return Duration(steps=left)
    step_s = statistics.median(times[WARM_STEPS:] or times)
    stepping_s = step_s * left + sum(max(0.0, one - step_s) for one in times[:WARM_STEPS])
    evaluation_s = _evaluations(run) * _evaluation_s(run)
    save_s = _saving_s(run)
    best_s = _best_saves(run) * save_s
    if save_s > QUICK_S and run.spec.early_stop is None:
        best_s = min(best_s, BEST_SHARE * (stepping_s + evaluation_s))
    saving_s = (_saves(run) + 1) * save_s + best_s  # the result is one more
    seconds = loading_s + stepping_s + evaluation_s + _canary_s(run) + saving_s
    return Duration(
        steps=left,
        step_s=step_s,
        loading_s=loading_s,
        evaluation_s=evaluation_s,
        saving_s=saving_s,
        seconds=seconds,
        seconds_low=seconds * (1 - INTERVAL),
        seconds_high=seconds * (1 + INTERVAL),
    )


def _step_times(run: Run) -> list[float]:
    """Of each step that was tried; none when the run is to stop."""
    ends = time.monotonic() + STEPS_S
    count = min(WARM_STEPS + MAX_STEPS, run.steps)
    times: list[float] = []
    run.relieving.open_state(run.progress.step)
    while len(times) < count and not run.stopping():
        if times and time.monotonic() + times[-1] > ends:
            break
        first = len(times) * max(1, run.steps // count) * run.spec.effective_batch
        times.append(_timed(lambda at=first: run.relieving.retried(lambda: _try_step(run, at), 0)))  # type: ignore[misc]
    return times


def _try_step(run: Run, first: int) -> None:
    """What the loop does in a step, without its guard."""
    rows = run.order.rows_at(first, run.spec.effective_batch)
    for start in range(0, len(rows), run.micro_batch):
        micro = moved(run.source.micro(rows[start : start + run.micro_batch]), run.trainee.device)
        run.objective.summed(run.trainee, micro).backward()  # type: ignore[no-untyped-call]
    guard.gradient_norm(run.trainee.trainables.values())
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def _evaluations(run: Run) -> int:
    """How often the loop will look at held-out rows: before the first step, at the intervals, after the last one."""
    first, last, interval = run.progress.step, run.steps, run.spec.eval_interval
    if interval is None:
        return (first == 0) + (last > 0)
    return _multiples(interval, first, last) + (last % interval != 0)


def _saves(run: Run) -> int:
    """At the intervals, and after the last step."""
    interval = run.spec.save_interval
    if interval is None:
        return 1
    return _multiples(interval, max(1, run.progress.step), run.steps) + (run.steps % interval != 0)


def _best_saves(run: Run) -> int:
    """Besides, if each evaluation is better than all before it."""
    spec, first, last = run.spec, run.progress.step, run.steps
    if run.held_out is None or (spec.early_stop is None and spec.keep_best == 0):
        return 0
    before = first == 0 and spec.early_stop is not None
    if spec.eval_interval is None:
        return int(before)
    saved_anyway = _multiples(math.lcm(spec.eval_interval, spec.save_interval), max(1, first), last)
    at_last = last % spec.eval_interval == 0 and last % spec.save_interval != 0
    return before + _multiples(spec.eval_interval, max(1, first), last) - saved_anyway - at_last


def _multiples(of: int, first: int, last: int) -> int:
    """How many there are from `first` to `last`."""
    return last // of - (first - 1) // of


def _evaluation_s(run: Run) -> float:
    """Of one evaluation: from some rows to all that are looked at, from some tokens to whole answers."""
    seconds = 0.0
    if (source := run.held_out) is not None and source.rows:
        rows = min(source.rows, evaluation.ROWS)
        some = min(rows, EXAMINED_ROWS * run.micro_batch)
        seconds += rows / some * _timed(lambda: _look(run, some))
    if samples := run.spec.samples:
        seconds += len(samples) * _answer_s(run, samples[0], run.spec.sample_tokens)
    return seconds


def _canary_s(run: Run) -> float:
    """Of its answers before the first step and after the last one."""
    if run.canary is None:
        return 0.0
    return 2 * len(CANARY_PROMPTS) * _answer_s(run, CANARY_PROMPTS[0][0], CANARY_TOKENS)


def _answer_s(run: Run, prompt: str, tokens: int) -> float:
    """Of a whole answer, from some tokens of it."""
    some = min(tokens, ANSWERED_TOKENS)
    first, several = _timed(lambda: _answer(run, prompt, 1)), _timed(lambda: _answer(run, prompt, some))
    return first + max(0.0, several - first) / max(1, some - 1) * (tokens - 1)


def _look(run: Run, rows: int) -> None:
    assert run.held_out is not None
    source, size = run.held_out, run.micro_batch
    evaluation.held_out(run.trainee, run.objective, source, size, limit=rows, stopping=run.stopping)


def _answer(run: Run, prompt: str, tokens: int) -> None:
    list(evaluation.answers(run.trainee, run.tokenizer, [prompt], tokens, stopping=run.stopping))


def _saving_s(run: Run) -> float:
    """Of one checkpoint, synced as all are."""
    whole = capture(run.trainee.trainables, run.optimizer, step=0, position=0, loss=None, facts={}, copy=False)
    some, some_bytes, all_bytes = {}, 0, 0
    for name, tensor in whole.tensors.items():
        if some_bytes < SAVED_BYTES:
            some[name] = tensor
            some_bytes += tensor.nbytes
        all_bytes += tensor.nbytes
    folder = run.checkpoints.folder.parent
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as place:
        tried = Snapshot(step=0, position=0, tensors=some, facts={})
        return all_bytes / some_bytes * _timed(lambda: Checkpoints(Path(place)).save(tried))


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
