"""What a whole run takes is added up from what was tried."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import tiny_model
from tests.training.runs import Rows, run_of, spec_of

from tiermesh.kernel.training import duration
from tiermesh.kernel.training.duration import estimate_duration
from tiermesh.kernel.training.run import Run
from tiermesh.protocol.training_events import CheckpointSaved, Evaluated, StepDone, TrainingEvent

STEPS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


def of(model: Path, folder: Path, *, eval_interval: int | None, save_interval: int) -> tuple[Run, list[TrainingEvent]]:
    spec = spec_of(eval_interval=eval_interval, save_interval=save_interval, samples=["a b c"], sample_tokens=5)
    return run_of(folder, model, spec, steps=STEPS, held_out=Rows(6))


@pytest.mark.parametrize(("eval_interval", "save_interval"), [(None, 1000), (3, 4), (5, 7), (12, 12), (1, 1), (13, 13)])
@pytest.mark.parametrize("stopped_at", [0, 6])
def test_evaluations_and_saves_are_counted_as_the_loop_makes_them(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eval_interval: int | None,
    save_interval: int,
    stopped_at: int,
) -> None:
    """The held-out rows are those that are learned: each evaluation is the best until then."""
    monkeypatch.setattr("tiermesh.kernel.training.keeping.QUICK_S", math.inf)
    if stopped_at:
        begun, _ = of(model, tmp_path, eval_interval=eval_interval, save_interval=save_interval)
        begun.stopping = lambda: begun.progress.step == stopped_at
        begun.go()
    run, events = of(model, tmp_path, eval_interval=eval_interval, save_interval=save_interval)
    if snapshot := run.checkpoints.newest():
        run.take_up(snapshot)
    evaluations, saves = duration._evaluations(run), duration._saves(run) + duration._best_saves(run)
    assert run.go() == "done"
    # One that the order to stop came before, or was made just before it, may be made again or not.
    close = bool(stopped_at)
    assert abs(evaluations - sum(isinstance(event, Evaluated) for event in events)) <= close
    assert abs(saves - sum(isinstance(event, CheckpointSaved) for event in events)) <= close


def test_all_that_a_run_does_is_in_the_sum(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later: a thing that is timed takes one, whatever it is."""
    ticks = itertools.count()
    monkeypatch.setattr(duration, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(duration, "STEPS_S", math.inf)
    run, _ = of(model, tmp_path, eval_interval=4, save_interval=6)
    found = estimate_duration(run, loading_s=7.0)
    assert found.steps == STEPS
    assert found.step_s is not None
    assert found.evaluation_s is not None
    assert found.saving_s is not None
    assert found.seconds is not None
    # At 0, 4, 8, 12: all six held-out rows in one look, and an answer.
    assert found.evaluation_s >= 4 * 2
    assert found.seconds == pytest.approx(7.0 + STEPS * found.step_s + found.evaluation_s + found.saving_s)
    assert list(tmp_path.glob(".probe*")) == []


def test_saves_of_the_best_take_a_tenth_of_the_time_at_most(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "_step_times", lambda run: [1.0] * 12)
    monkeypatch.setattr(duration, "_evaluation_s", lambda run: 2.0)
    monkeypatch.setattr(duration, "_saving_s", lambda run: 60.0)
    run, _ = of(model, tmp_path, eval_interval=1, save_interval=1000)
    found = estimate_duration(run, loading_s=0.0)
    assert found.saving_s == pytest.approx(2 * 60.0 + 0.1 * (STEPS * 1.0 + (STEPS + 1) * 2.0))


def test_what_was_tried_changes_no_weight_and_leaves_no_event(model: Path, tmp_path: Path) -> None:
    run, events = of(model, tmp_path, eval_interval=4, save_interval=6)
    before = {name: tensor.detach().clone() for name, tensor in run.trainee.trainables.items()}
    estimate_duration(run, loading_s=0.0)
    assert all((run.trainee.trainables[name] == tensor).all() for name, tensor in before.items())
    assert not [event for event in events if isinstance(event, StepDone | Evaluated | CheckpointSaved)]


def test_slow_steps_are_few(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is always tried."""
    monkeypatch.setattr(duration, "STEPS_S", 0.0)
    run, _ = of(model, tmp_path, eval_interval=None, save_interval=1000)
    tried = []
    monkeypatch.setattr(duration, "_try_step", lambda run, first: tried.append(first))
    estimate_duration(run, loading_s=0.0)
    assert tried == [0]
