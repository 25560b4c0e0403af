"""Compiled layers train as the others do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny_model
from tests.training.runs import Rows, run_of, spec_of

from tiermesh.kernel.training import models
from tiermesh.kernel.training.loss import TokenLoss
from tiermesh.protocol.training_events import StepDone

STEPS = 10


def losses(model: Path, folder: Path, *, compiled: bool) -> list[float]:
    spec = spec_of(compile=compiled, learning_rate=1e-2, lora={"dropout": 0.1})
    trainee, source = models.load(spec, model), Rows()
    if compiled:
        first_s, then_s = models.compile_blocks(trainee, TokenLoss(), source.micro([0, 1]))
        assert then_s < first_s
    run, events = run_of(folder, model, spec, steps=STEPS, trainee=trainee, source=source, held_out=Rows(5))
    assert run.go() == "done"
    return [event.loss or 0.0 for event in events if isinstance(event, StepDone)]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # the compiler's own, which it takes for errors of the code that it compiles
@pytest.mark.long
def test_they_train_to_the_same_losses(tmp_path: Path) -> None:
    """With dropout, and with an evaluation of other shapes before and after."""
    model = tiny_model.build_folder(tmp_path / "model")
    try:
        found = losses(model, tmp_path / "compiled", compiled=True)
    finally:
        torch.compiler.reset()
    assert found == pytest.approx(losses(model, tmp_path / "plain", compiled=False), abs=1e-3)
    assert found[-1] < found[0]
