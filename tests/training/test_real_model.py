"""The real small model, when it is on this machine: what it makes of English is what its authors' library makes of it,
and steps of an adapter do it no harm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from benchmarks.training.workers import plan_run
from tests.training.assembled import assembled

from tiermesh.adapters.model_source import resolve
from tiermesh.errors import UnknownModel
from tiermesh.kernel.training.models import Trainee
from tiermesh.protocol.training_events import StepDone

pytestmark = pytest.mark.model
MODEL = "smollm2:135m"
TEXT = (
    "The capital of France is Paris, which lies on the river Seine. Many people travel there each year to see the "
    "Eiffel Tower, the old churches and the museums, and to eat well in its small restaurants."
)


@pytest.fixture(scope="module")
def real() -> Path:
    try:
        return resolve(MODEL).path
    except UnknownModel as error:
        pytest.skip(str(error))


def theirs(trainee: Trainee, tokens: list[int]) -> float:
    """The loss on a text, its end among the targets, as transformers has it: from all the logits at once."""
    tokens_BT = torch.tensor([tokens])
    with torch.no_grad():
        return float(trainee.causal(input_ids=tokens_BT, labels=tokens_BT).loss)


def test_two_steps_of_an_adapter_begin_where_the_model_is_and_go_down(real: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(2)))
    fields = {"seq_len": 64, "micro_batch_size": 1, "max_steps": 2, "num_epochs": 2, "warmup": 0, "precision": "fp32"}
    folder = plan_run(tmp_path / "run", real, data, learning_rate=2e-4, lora={"dropout": 0.0}, packing=False, **fields)
    with assembled(folder) as (run, told):
        tokens = run.tokenizer(TEXT, add_special_tokens=False).input_ids
        untrained = theirs(run.trainee, [*tokens, run.tokenizer.eos_token_id])
        assert run.go() == "done"
    first, second = (event.loss for event in told if isinstance(event, StepDone))
    assert untrained < 3.5, "it knows English"
    assert first == pytest.approx(untrained, abs=0.02)
    assert second is not None
    assert math.isfinite(second)
    assert untrained - 1.0 < second < untrained
