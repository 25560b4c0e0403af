"""A run looks after each step at how much of its memory is used, and acts on it before anything is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from tests import tiny_model
from tests.training.runs import Rows, run_of, spec_of

from tiermesh.kernel.training.memory import Memory
from tiermesh.kernel.training.run import Run
from tiermesh.protocol.training_events import Relieved, StepDone, TrainingEvent, Warned

STEPS = 10
SPEC = spec_of(micro_batch_size=4, gradient_accumulation_steps=1, save_interval=1000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _no_other_program_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        available, total = 900, 1000

    monkeypatch.setattr(psutil, "virtual_memory", Machine)


def run_in_container(
    folder: Path, model: Path, shares: Mapping[int, float]
) -> tuple[Run, list[TrainingEvent], Rows, list[int]]:
    """A run in a container whose memory is used to `shares`, each from the end of the step that it stands for; with its
    events, its rows, and the steps after which it gave memory back."""
    container = folder / "container"
    container.mkdir(parents=True)
    (container / "memory.max").write_text("1000")
    (container / "memory.current").write_text("100")
    memory = Memory(1 << 40, torch.device("cpu"), container)
    rows, done, trimmed = Rows(), [0], list[int]()
    run, events = run_of(
        folder, model, SPEC, steps=STEPS, source=rows, look=memory.look, trim=lambda: trimmed.append(done[-1])
    )
    say = run.say

    def fill(event: TrainingEvent) -> None:
        say(event)
        if isinstance(event, StepDone):
            done.append(event.step)
            if event.step in shares:
                (container / "memory.current").write_text(str(round(shares[event.step] * 1000)))

    run.say = fill
    return run, events, rows, trimmed


def test_pressure_that_rises_is_met_step_by_step(model: Path, tmp_path: Path) -> None:
    calm, _, _, _ = run_in_container(tmp_path / "calm", model, {})
    shares = {2: 0.75, 4: 0.86, 5: 0.93, 6: 0.91, 7: 0.98, 8: 0.5, 9: 0.75}
    run, events, rows, trimmed = run_in_container(tmp_path / "run", model, shares)
    assert calm.go() == run.go() == "done"
    told = [event for event in events if isinstance(event, Relieved)]
    assert [(e.step, e.level, e.pressure, e.action, e.micro_batch_size) for e in told] == [
        (4, "high", 0.86, "trim", 4),
        (5, "severe", 0.93, "halve_micro_batch", 2),
        (7, "critical", 0.98, "halve_micro_batch", 1),
    ]
    assert trimmed == [4, 5, 7]
    assert [len(asked) for asked in rows.asked] == [4] * 5 + [2] * 2 * 2 + [1] * 4 * 3, "nothing is taken back"
    assert run.progress.position == calm.progress.position
    assert run.progress.loss == pytest.approx(calm.progress.loss, abs=1e-4)


def test_when_rows_can_not_be_fewer_activations_are_computed_again(model: Path, tmp_path: Path) -> None:
    run, events, _, _ = run_in_container(tmp_path, model, {1: 0.99})
    assert run.go() == "done"
    told = [(event.step, event.action) for event in events if isinstance(event, Relieved)]
    assert told == [(1, "halve_micro_batch"), (2, "halve_micro_batch"), (3, "checkpoint_activations")]
    assert run.trainee.checkpointing


def test_before_anything_is_done_it_is_told_once(model: Path, tmp_path: Path) -> None:
    run, events, _, trimmed = run_in_container(tmp_path, model, {3: 0.73, 5: 0.5, 6: 0.8})
    assert run.go() == "done"
    at = {step: index for index, event in enumerate(events) if isinstance(event, StepDone) for step in [event.step]}
    (told,) = [index for index, event in enumerate(events) if isinstance(event, Warned)]
    assert at[3] < told < at[4]
    warned = events[told]
    assert isinstance(warned, Warned)
    assert "73%" in warned.message
    assert not trimmed
    assert not [event for event in events if isinstance(event, Relieved)]


def test_below_that_nothing_is_told(model: Path, tmp_path: Path) -> None:
    run, events, _, trimmed = run_in_container(tmp_path, model, {1: 0.71})
    assert run.go() == "done"
    assert not [event for event in events if isinstance(event, Warned | Relieved)]
    assert not trimmed
