"""All that is wrong with a spec is told at once, and what is sound of it can be used all the same."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_problems import UNSOUND, sound_part, spec_problems

GOOD = {"model_name": "m", "dataset_path": "d"}

ROWS: list[tuple[dict[str, Any], list[str]]] = [
    # a wrong field hides no fault between others
    ({"seq_len": 1, "early_stop": {}}, ["seq_len", "early_stop"]),
    ({"lora": {"r": 0}, "merge": True, "method": "full_finetune"}, ["lora.r", "merge"]),
    ({"optimizer": {"options": {}}, "warmup": 9, "max_steps": 3}, ["optimizer.name", "warmup"]),
    ({"model_name": 7, "callbacks": ["log", "log"]}, ["model_name", "callbacks"]),
    ({"epochs": 3, "eval_path": "e", "eval_fraction": 0.1}, ["epochs", "eval_fraction"]),
    ({"data": {"format": 3, "token_masking": 0.5}, "task": "preference"}, ["data.format", "data.token_masking"]),
    # unless it is about that field
    ({"early_stop": {}, "eval_interval": "ten"}, ["eval_interval"]),
    ({"early_stop": {"patience": 0}}, ["early_stop.patience"]),
    ({"merge": True, "method": "all"}, ["method"]),
    ({"task": "pretrain", "data": {"fields": {"prompt": "p", "messages": 7}}}, ["data.fields.messages"]),
    ({"callbacks": ["log", "log", 7]}, ["callbacks[2]"]),
]


@pytest.mark.parametrize(("fields", "paths"), ROWS)
def test_every_fault_is_told_once(fields: dict[str, Any], paths: list[str]) -> None:
    found = spec_problems(GOOD | fields)
    assert isinstance(found, list)
    assert [problem.path for problem in found] == paths


@pytest.mark.parametrize("fields", [row[0] for row in ROWS])
def test_what_is_sound_is_a_spec(fields: dict[str, Any]) -> None:
    found = spec_problems(GOOD | fields)
    assert isinstance(found, list)
    sound = sound_part(GOOD | fields, found)
    assert sound is not None
    assert sound.dataset_path == "d"


def test_fields_that_are_not_wrong_are_kept() -> None:
    data = {"dataset_path": "d", "seq_len": 1, "data": {"format": "csv", "max_bad_records": -1, "formt": 1}}
    found = spec_problems(data)
    assert isinstance(found, list)
    assert sound_part(data, found) == TrainingSpec.model_validate(
        {"model_name": UNSOUND, "dataset_path": "d", "data": {"format": "csv"}}
    )
