"""What follows a failure: bounded, typed, and never the same again when nothing would be different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from tiermesh.core.evaluation import FAILURE_ORDER
from tiermesh.core.remediation import DEFAULTS, MAX_RETRIES, TREATMENTS, Remedy, Stop, optimize, remedy
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import FailureKind

Spec = Mapping[str, Any]

MEMORY: list[tuple[str, Spec, int | None, Spec | None]] = [
    ("halved", {"micro_batch_size": 8}, None, {"micro_batch_size": 4, "gradient_accumulation_steps": 2}),
    (
        "doubled again",
        {"micro_batch_size": 4, "gradient_accumulation_steps": 2},
        None,
        {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
    ),
    ("the default size", {}, None, {"micro_batch_size": 2, "gradient_accumulation_steps": 2}),
    (
        "odd: the effective batch holds",
        {"micro_batch_size": 6, "gradient_accumulation_steps": 5},
        None,
        {"micro_batch_size": 3, "gradient_accumulation_steps": 10},
    ),
    ("a prime", {"micro_batch_size": 7}, None, {"micro_batch_size": 1, "gradient_accumulation_steps": 7}),
    (
        "where the run had come to by itself",
        {"micro_batch_size": 16},
        4,
        {"micro_batch_size": 2, "gradient_accumulation_steps": 8},
    ),
    (
        "a run that had come to one row by itself",
        {"micro_batch_size": 8, "method": "lora"},
        1,
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8, "method": "qlora"},
    ),
    (
        "full to lora",
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8, "method": "full_finetune"},
        None,
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8, "method": "lora"},
    ),
    (
        "lora to qlora",
        {"micro_batch_size": 1, "method": "lora"},
        None,
        {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "method": "qlora"},
    ),
    ("below qlora is nothing", {"micro_batch_size": 1, "method": "qlora"}, None, None),
]


@pytest.mark.parametrize(("spec", "reached", "changed"), [row[1:] for row in MEMORY], ids=[row[0] for row in MEMORY])
def test_out_of_memory(spec: Spec, reached: int | None, changed: Spec | None) -> None:
    found = remedy("out_of_memory", [spec], reached=reached)
    if changed is None:
        assert isinstance(found, Stop)
        return
    assert isinstance(found, Remedy)
    assert found.spec == {**spec, **changed}
    assert not found.costs_more
    assert _effective(found.spec) == _effective(spec)


CHANGES: list[tuple[str, str, Spec, Spec | None]] = [
    ("rate", "non_finite", {"learning_rate": 4e-4}, {"learning_rate": 2e-4}),
    ("rate, also at one row and full", "non_finite", {"micro_batch_size": 1, "method": "full_finetune"}, None),
    ("the default rate", "diverged", {}, {"learning_rate": 2.5e-5}),
    ("a loss that is none", "loss_not_finite", {}, {"learning_rate": 2.5e-5}),
    ("a loss that rose", "loss_rose", {}, {"learning_rate": 2.5e-5}),
    ("told no more", "canary_silent", {}, {"learning_rate": 2.5e-5}),
    ("refused", "canary_refused", {}, {"learning_rate": 2.5e-5}),
    ("unguarded", "canary_unguarded", {}, {"learning_rate": 2.5e-5}),
    ("leaked", "canary_leaked", {"num_epochs": 3}, {"num_epochs": 1}),
    ("gap", "gap_too_wide", {"num_epochs": 8}, {"num_epochs": 4}),
    ("gap, in steps", "gap_too_wide", {"max_steps": 100}, {"max_steps": 50}),
    ("gap at one epoch", "gap_too_wide", {"num_epochs": 1}, {"learning_rate": 2.5e-5}),
    ("learned too little", "loss_too_high", {"num_epochs": 3}, {"num_epochs": 6}),
]


@pytest.mark.parametrize(("failure", "spec", "changed"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_the_spec_is_changed(failure: str, spec: Spec, changed: Spec | None) -> None:
    found = remedy(failure, [spec])
    assert isinstance(found, Remedy)
    changed = {"learning_rate": 2.5e-5} if changed is None else changed
    assert found.spec == {**spec, **changed}
    assert found.costs_more == (failure == "loss_too_high")


def test_steps_that_a_person_bounded_stay_bounded() -> None:
    found = remedy("loss_too_high", [{"max_steps": 100}])
    assert found == Stop("max_steps (100) allows no more")


@pytest.mark.parametrize("failure", ["non_finite", "diverged", "loss_not_finite"])
@pytest.mark.parametrize("method", ["full_finetune", "lora", "qlora"])
def test_numbers_never_change_the_method(failure: str, method: str) -> None:
    found = remedy(failure, [{"method": method, "micro_batch_size": 1}])
    assert isinstance(found, Remedy)
    assert found.spec["method"] == method


@pytest.mark.parametrize(
    "failure",
    ["environment_unfit", "disk_full", "overheated", "bad_data", "bad_spec", "model_unusable", "plugin_failed"],
)
def test_what_would_fail_again_is_not_tried_again(failure: str) -> None:
    assert remedy(failure, [{}]) == Stop("it would fail again in the same way")


@pytest.mark.parametrize("failure", ["unexplained", "stalled", "checkpoint_unusable", "of a later version"])
def test_anything_else_is_tried_once_more_unchanged(failure: str) -> None:
    spec = {"learning_rate": 1e-4}
    assert remedy(failure, [spec]) == Remedy(spec, "once more, unchanged")
    assert isinstance(remedy(failure, [spec, spec]), Stop)
    # Also when something else was remedied meanwhile: once is once.
    assert isinstance(remedy(failure, [spec, spec, {"learning_rate": 5e-5}]), Stop)
    # A change before it was no unchanged retry.
    assert isinstance(remedy(failure, [{"learning_rate": 2e-4}, spec]), Remedy)


@pytest.mark.parametrize("failure", [*TREATMENTS, "unexplained"])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_retries_never_exceed_the_bound(failure: str, most: int) -> None:
    tried: list[Spec] = [{"micro_batch_size": 4096, "num_epochs": 1024, "method": "full_finetune"}]
    while isinstance(found := remedy(failure, tried, max_retries=most), Remedy):
        tried.append(found.spec)
    assert len(tried) - 1 <= most


def test_the_bound_is_three() -> None:
    tried: list[Spec] = [{"micro_batch_size": 4096}]
    while isinstance(found := remedy("out_of_memory", tried), Remedy):
        tried.append(found.spec)
    assert [spec["micro_batch_size"] for spec in tried] == [4096, 2048, 1024, 512]
    assert MAX_RETRIES == 3
    assert "no more than 3" in found.why


def test_a_rate_that_learns_nothing_is_not_halved_further() -> None:
    assert isinstance(remedy("non_finite", [{"learning_rate": 1.5e-8}]), Stop)


def test_what_would_change_nothing_is_not_tried() -> None:
    """Every remedy but the one unchanged retry has another spec."""
    for failure, treatment in TREATMENTS.items():
        found = remedy(failure, [{"num_epochs": 1}])
        assert isinstance(found, Stop) or found.spec != {"num_epochs": 1}, failure
        assert isinstance(found, Stop) == (treatment == "none"), failure


def test_every_failure_is_known() -> None:
    once = {"checkpoint_unusable", "stalled", "unexplained"}
    assert set(get_args(FailureKind)) | set(FAILURE_ORDER) == set(TREATMENTS) | once


def test_defaults_are_those_of_the_spec() -> None:
    spec = TrainingSpec(model_name="m", dataset_path="d").model_dump()
    assert {name: spec[name] for name in DEFAULTS} == dict(DEFAULTS)


CHEAPER: list[tuple[str, Spec, int | None, Spec | None]] = [
    ("an adapter instead of all", {"method": "full_finetune"}, 100, {"method": "lora"}),
    ("half the epochs", {"num_epochs": 3}, 100, {"num_epochs": 1}),
    ("half the steps asked for", {"max_steps": 100}, 100, {"max_steps": 50}),
    ("the epochs end before", {"max_steps": 1000}, 80, {"max_steps": 40}),
    ("half the steps of one epoch", {"num_epochs": 1}, 81, {"max_steps": 40}),
    ("one epoch, steps unknown", {"num_epochs": 1}, None, None),
    ("one step", {"num_epochs": 1}, 1, None),
    ("one step asked for", {"max_steps": 1}, 1, None),
]


@pytest.mark.parametrize(("spec", "steps", "changed"), [row[1:] for row in CHEAPER], ids=[row[0] for row in CHEAPER])
def test_optimize(spec: Spec, steps: int | None, changed: Spec | None) -> None:
    found = optimize(spec, steps)
    assert (None if found is None else found.spec) == (None if changed is None else {**spec, **changed})


def test_optimized_again_and_again_it_ends() -> None:
    spec: Spec = {"method": "full_finetune", "num_epochs": 10_000}
    seen: list[Spec] = []
    while (found := optimize(spec, 5)) is not None and len(seen) < 100:
        seen.append(spec)
        spec = found.spec
    assert len(seen) < 30


def _effective(spec: Spec) -> int:
    micro: int = spec.get("micro_batch_size", 4)
    accumulation: int = spec.get("gradient_accumulation_steps", 1)
    return micro * accumulation
