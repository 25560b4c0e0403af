"""A run's events: one line each, whole, to whoever listens; and as curves."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from tiermesh.errors import EnvironmentUnfit, TrainingFailure
from tiermesh.kernel.training.curves import sinks
from tiermesh.kernel.training.events import Events
from tiermesh.protocol.run_folder import RunFolder, RunPlan, checkpoint_name, checkpoint_step
from tiermesh.protocol.training_events import (
    Completed,
    Evaluated,
    FailureKind,
    Sampled,
    StepDone,
    TrainingEvent,
    Warned,
    from_line,
    to_line,
)
from tiermesh.protocol.training_problems import read_spec

FIELDS = {"model_name": "m", "dataset_path": "d"}


def step(number: int, **figures: Any) -> StepDone:
    return StepDone(step=number, steps=9, epoch=0.5, **{"loss": 1.5, "learning_rate": 1e-4} | figures)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    made = Events(tmp_path / "run" / "events.jsonl")
    yield made
    made.close()


def test_every_event_goes_there_and_back() -> None:
    for kind in get_args(TrainingEvent):
        needed = {name: _some(field) for name, field in kind.model_fields.items() if field.is_required()}
        event = kind(**needed)
        assert from_line(to_line(event)) == event
        assert to_line(event).count(b"\n") == 1


def _some(field: Any) -> Any:
    if choices := get_args(field.annotation):
        return None if type(None) in choices else choices[0]
    return {str: "a\nb", int: 3, float: 0.5}[field.annotation]


def test_the_kinds_of_failure_are_the_types_of_the_errors() -> None:
    assert {kind.type for kind in TrainingFailure.__subclasses__()} == set(get_args(FailureKind))


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_none(figure: float) -> None:
    assert step(1, loss=figure, grad_norm=figure, perplexity=figure).model_dump(include={"loss", "grad_norm"}) == {
        "loss": None,
        "grad_norm": None,
    }


def test_an_event_is_a_line_with_its_time(events: Events, tmp_path: Path) -> None:
    heard: list[TrainingEvent] = []
    events.listen(heard.append)
    events.say(step(1))
    events.say(Warned(message="careful"))
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["step", "warned"]
    assert [from_line(line.encode()) for line in lines] == heard
    assert heard[0].at > 1e9


def test_half_a_line_of_a_killed_writer_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"warned","message":"a"}\n{"event":"ste')
    again = Events(path)
    again.say(Warned(message="b"))
    again.close()
    told = [from_line(line) for line in path.read_bytes().splitlines()]
    assert [event.message for event in told if isinstance(event, Warned)] == ["a", "b"]


def test_names_of_checkpoints_sort_as_steps_do() -> None:
    steps = [0, 9, 10, 99_999_999, 100_000_000]
    assert [checkpoint_step(checkpoint_name(number)) for number in steps] == steps
    assert checkpoint_step("step-00000120.2") == 120
    assert [checkpoint_step(name) for name in ("latest", "step-12", ".step-00000012", "step-00000012.tmp")] == [
        None
    ] * 4


def test_a_plan_is_written_whole_and_read_as_it_was(tmp_path: Path) -> None:
    spec = read_spec(
        FIELDS | {"lora": {"targets": ["q_proj"]}, "samples": ["a"], "callbacks": ["log"], "eval_path": "e"}
    )
    plan = RunPlan(spec=spec, model_path="/m", data_path="/d", eval_path="/e")
    folder = RunFolder(tmp_path / "run")
    folder.write_plan(plan)
    assert folder.read_plan() == plan
    assert [path.name for path in folder.path.iterdir()] == ["spec.json"]
    assert read_spec(spec.model_dump(mode="json")) == spec


def test_tensorboard_has_the_curves_and_takes_back_what_a_checkpoint_does_not_have(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec, folder = read_spec(FIELDS | {"tensorboard": True}), RunFolder(tmp_path)
    (draw,) = sinks(spec, folder, 0)
    for number in range(1, 5):
        draw(step(number, loss=float(number)))
    draw(Sampled(step=4, prompt="what?", text="that"))
    draw(Evaluated(step=4, loss=0.5, perplexity=1.6))
    (draw,) = sinks(spec, folder, 2)  # steps 3 and 4 were after the last checkpoint
    draw(step(3, loss=30.0))
    draw(Completed(step=3, result="r"))
    curves = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert "train/learning_rate" in curves.Tags()["scalars"]


def test_weights_and_biases_gets_one_run_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their library would ask the internet, so that a list stands in for it."""
    told: list[tuple[str, dict[str, Any]]] = []
    run = SimpleNamespace(
        log=lambda points, step: told.append(("log", {"step": step, **points})),
        finish=lambda exit_code: told.append(("finish", {"exit_code": exit_code})),
    )

    def init(**given: Any) -> Any:
        told.append(("init", given))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    spec = read_spec(FIELDS | {"wandb": "docstrings"})
    for _ in range(2):
        (send,) = sinks(spec, RunFolder(tmp_path), 0)
    send(step(3, loss=2.0, perplexity=None))
    send(Warned(message="no curve"))
    send(Completed(step=3, result="r"))
    first, second, log, finish = told
    assert first[1]["project"] == "docstrings"
    assert (first[1]["id"], first[1]["resume"]) == (second[1]["id"], "allow")
    assert log[1] == {"step": 3, "train/loss": 2.0, "train/learning_rate": 1e-4} | {
        "train/skipped_steps": 0,
        "train/rollbacks": 0,
    }
    assert finish[1] == {"exit_code": 0}


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentUnfit, match="wandb: the package wandb is not installed here; pip install wandb"):
        sinks(read_spec(FIELDS | {"wandb": "docstrings"}), RunFolder(tmp_path), 0)


def test_nothing_is_drawn_unasked(tmp_path: Path) -> None:
    assert sinks(read_spec(FIELDS), RunFolder(tmp_path), 0) == []
