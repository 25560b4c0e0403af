"""OpenAI's fine-tuning jobs as this mesh's, and back."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.daemon.api.translate_tuning import (
    DPO_RATE,
    SUPERVISED_RATE,
    job_key,
    label_of,
    page,
    result_table,
    spec_of,
    told_checkpoints,
    told_events,
    told_job,
)
from tiermesh.errors import InvalidInput
from tiermesh.protocol.jobs import DataRef, JobReport, Progress
from tiermesh.protocol.openai_tuning import PAGE, PageQuery, TuningRequest, file_id
from tiermesh.protocol.training_events import (
    CheckpointSaved,
    Completed,
    Evaluated,
    Failed,
    Phase,
    StepDone,
    TrainingEvent,
    to_line,
)
from tiermesh.protocol.training_problems import read_spec
from tiermesh.protocol.validation import validated

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = 2000.0
SHA = "ab" * 32


def asked(**fields: Any) -> TuningRequest:
    return validated(TuningRequest, {"model": "smollm2:135m", "training_file": "file-1"} | fields)


def supervised(**how: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": how}}}


def dpo(**how: Any) -> dict[str, Any]:
    return {"method": {"type": "dpo", "dpo": {"hyperparameters": how}}}


def batch(micro: int, accumulation: int) -> dict[str, Any]:
    return {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "packing": False}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"task": "finetune", "method": "lora", "model_name": "smollm2:135m", "learning_rate": SUPERVISED_RATE}),
        (supervised(n_epochs=5), {"num_epochs": 5}),
        ({"hyperparameters": {"n_epochs": 5}}, {"num_epochs": 5}),
        ({"hyperparameters": {"n_epochs": 5}, "method": {"type": "supervised"}}, {"num_epochs": 5}),
        (supervised(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"), {}),
        (supervised(learning_rate_multiplier=0.5), {"learning_rate": SUPERVISED_RATE / 2}),
        (supervised(batch_size=1), batch(1, 1)),
        (supervised(batch_size=4), batch(4, 1)),
        (supervised(batch_size=6), batch(3, 2)),
        (supervised(batch_size=7), batch(1, 7)),
        (supervised(batch_size=256), batch(4, 64)),
        (dpo(), {"task": "preference", "learning_rate": DPO_RATE}),
        (dpo(beta="auto"), {}),
        (dpo(beta=0.2, learning_rate_multiplier=2), {"dpo": {"beta": 0.2}, "learning_rate": DPO_RATE * 2}),
        ({"seed": 7}, {"seed": 7}),
        ({"integrations": []}, {}),
        ({"metadata": {}}, {}),
    ],
)
def test_what_is_asked_for_becomes_a_spec(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = spec_of(asked(**fields))
    assert {name: spec.get(name) for name in expected} == expected
    read_spec(spec | {"dataset_path": "data"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type"),
        ({"method": {"type": "later"}}, "method.type"),
        (supervised(compute_multiplier=2), "method.supervised.hyperparameters.compute_multiplier"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        ({"hyperparameters": {"n_epochs": 1}, **dpo()}, "hyperparameters"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ],
)
def test_what_a_mesh_can_not_do_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_of(asked(**fields))
    assert caught.value.param == named


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (supervised(n_epochs=0), "method.supervised.hyperparameters.n_epochs"),
        (supervised(n_epochs="three"), "method.supervised.hyperparameters.n_epochs"),
        (dpo(beta=-1), "method.dpo.hyperparameters.beta"),
        ({"seed": -1}, "seed"),
        ({"suffix": "s" * 65}, "suffix"),
        ({"training_file": ""}, "training_file"),
    ],
)
def test_what_is_out_of_bounds_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        asked(**fields)
    assert caught.value.param == named


@pytest.mark.parametrize(
    ("suffix", "label"),
    [(None, None), ("faq", "faq"), ("My FAQ, 2nd try!", "My-FAQ-2nd-try"), ("???", None), ("-x-", "x"), ("ä", None)],
)
def test_a_suffix_becomes_a_name_that_can_be_typed(suffix: str | None, label: str | None) -> None:
    assert label_of(suffix) == label


@pytest.mark.parametrize("key", [f"ftjob-{ULID}", ULID, "faq"])
def test_jobs_are_found_by_any_of_their_names(key: str) -> None:
    assert job_key(key) in (ULID, "faq")


def report(**fields: Any) -> JobReport:
    known: dict[str, Any] = {
        "id": ULID, "name": "faq", "state": "running", "node": "desk", "model": "m", "submitted_at": 1000.5,
        "spec": spec_of(asked(**supervised(n_epochs=2, batch_size=6, learning_rate_multiplier=0.3), seed=7)),
        "data": DataRef(sha256=SHA, name="a.jsonl"),
    }  # fmt: skip
    return JobReport.model_validate(known | fields)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("estimating", "validating_files"),
        ("waiting", "paused"),
        ("queued", "queued"),
        ("running", "running"),
        ("cancelling", "running"),
        ("completed", "succeeded"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("refused", "failed"),
    ],
)
def test_each_state_has_its_status(state: str, status: str) -> None:
    assert told_job(report(state=state), NOW).status == status


def test_a_job_is_told_as_it_was_asked_for() -> None:
    job = told_job(report(eval_data=DataRef(sha256=SHA, name="b.jsonl")), NOW)
    assert (job.id, job.created_at, job.model, job.seed, job.suffix) == (f"ftjob-{ULID}", 1000, "m", 7, "faq")
    assert job.hyperparameters == {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 0.3}
    assert job.method == {"type": "supervised", "supervised": {"hyperparameters": job.hyperparameters}}
    assert job.training_file == file_id("fine-tune", "a.jsonl", SHA)
    assert job.validation_file == file_id("fine-tune", "b.jsonl", SHA)
    assert (job.fine_tuned_model, job.error, job.finished_at, job.result_files) == (None, None, None, [])


def test_preferences_have_their_own_hyperparameters() -> None:
    job = told_job(report(spec=spec_of(asked(**dpo(beta=0.3)))), NOW)
    assert job.method["type"] == "dpo"
    assert job.hyperparameters["beta"] == 0.3
    assert job.hyperparameters["learning_rate_multiplier"] == 1.0


def test_a_running_job_says_when_it_will_be_done() -> None:
    assert told_job(report(progress=Progress(eta_s=100.0)), NOW).estimated_finish == 2100
    assert told_job(report(), NOW).estimated_finish is None


def test_an_ended_job_has_its_result_or_its_error() -> None:
    done = told_job(report(state="completed", ended_at=1500.0, result={"tokens": 99}), NOW)
    assert (done.fine_tuned_model, done.finished_at, done.trained_tokens) == ("faq", 1500, 99)
    assert done.result_files == [f"file-result-{ULID}"]
    failed = told_job(report(state="failed", failure="bad_data", reason="no records", ended_at=1500.0), NOW)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message, failed.error.param) == ("bad_data", "no records", "training_file")
    refused = told_job(report(state="refused", reason="over budget", ended_at=1500.0), NOW)
    assert refused.error is not None
    assert (refused.error.code, refused.error.message) == ("refused", "over budget")


def lines(*events: TrainingEvent) -> list[tuple[int, bytes]]:
    return [(10**9 + number, to_line(event)) for number, event in enumerate(events, 1)]


def step(number: int, loss: float | None) -> StepDone:
    return StepDone(step=number, steps=4, epoch=1.0, loss=loss, learning_rate=1e-4, at=100.0 + number)


RUN = lines(
    Phase(phase="train", state="started", at=100.0),
    step(1, 4.0),
    CheckpointSaved(step=1, name="step-1", at=101.5),
    step(2, None),
    step(3, 2.0),
    Evaluated(step=3, loss=2.5, at=103.5),
    CheckpointSaved(step=3, name="step-3", at=103.6),
    step(3, 2.25),
    Completed(step=3, result="/secret/path", loss=2.25, at=104.0),
)


def test_events_are_told_newest_first() -> None:
    told = told_events(ULID, RUN)
    assert told[0].message == "The run is done after 3 steps"
    assert told[-1].message == "Step 1/4: training loss=4"
    assert told[-1].data == {"step": 1, "total_steps": 4, "train_loss": 4.0}
    assert told[-1].type == "metrics"
    assert len({event.id for event in told}) == len(told) == 8
    assert not any("/secret" in event.model_dump_json() for event in told)


def test_a_failure_is_an_error_event() -> None:
    (event,) = told_events(ULID, lines(Failed(kind="non_finite", message="NaN", at=1.0)))
    assert (event.level, event.message) == ("error", "NaN")


def test_checkpoints_have_the_figures_of_their_step() -> None:
    told = told_checkpoints(report(), RUN)
    assert [(each.step_number, each.created_at) for each in told] == [(3, 103), (1, 101)]
    assert told[0].metrics == {"step": 3, "train_loss": 2.25, "full_valid_loss": 2.5}
    assert told[0].fine_tuning_job_id == f"ftjob-{ULID}"


def test_the_figures_are_a_table() -> None:
    assert result_table(RUN).decode().splitlines() == [
        "step,train_loss,learning_rate,valid_loss",
        "1,4.0,0.0001,",
        "2,,0.0001,",
        "3,2.25,0.0001,2.5",
    ]


def test_lists_come_in_pages() -> None:
    entries = told_events(ULID, RUN)
    first = page(entries, PageQuery(limit=3), PAGE)
    assert (len(first.data), first.has_more, first.last_id) == (3, True, entries[2].id)
    rest = page(entries, PageQuery(limit=100, after=first.last_id), PAGE)
    assert ([event["id"] for event in rest.data], rest.has_more) == ([event.id for event in entries[3:]], False)
    with pytest.raises(InvalidInput, match="nothing"):
        page(entries, PageQuery(after="nothing"), PAGE)
