"""docs/training.md says what is so."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from tests.training.spec_reference import PAGE, reference

from tiermesh.config.file import parse
from tiermesh.config.yaml_text import plain_data
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_advice import ADVICE
from tiermesh.protocol.training_events import FailureKind
from tiermesh.protocol.training_plugins import GROUPS
from tiermesh.protocol.training_problems import read_spec

TEXT = PAGE.read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_reference_is_what_the_model_says() -> None:
    assert reference() in TEXT, "run scripts/spec_reference"


def test_every_field_is_described() -> None:
    undescribed = [name for name, field in TrainingSpec.model_fields.items() if not field.description]
    assert undescribed == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_right(example: str) -> None:
    if example.startswith("# cluster.yaml"):
        assert parse(example, "example").adapters
    else:
        read_spec(plain_data(example, "example"))


def test_every_kind_of_failure_has_advice() -> None:
    told = re.findall(r"^\| `(\w+)` \|", TEXT.split("## When it goes wrong")[1].split("##")[0], re.MULTILINE)
    assert sorted(told) == sorted(get_args(FailureKind))


def test_the_worker_tells_what_helps_where_its_message_does_not() -> None:
    silent = {"bad_spec", "checkpoint_unusable", "environment_unfit"}
    assert set(ADVICE) == set(get_args(FailureKind)) - silent


def test_every_group_of_plugins_is_told() -> None:
    for group in GROUPS.values():
        assert f"| `{group}` |" in TEXT
