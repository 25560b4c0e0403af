"""What an estimate is made of; how near it comes is shown by scripts/bench_estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.training.workers import plan_run, run_to_end, write_texts
from tests.tiny_model import Kind, build_folder

from tiermesh.kernel.training import models
from tiermesh.kernel.training.estimate import optimizer_bytes
from tiermesh.kernel.training.footprint import Footprint, _count, _Live, footprint
from tiermesh.kernel.training.loss import TokenLoss
from tiermesh.kernel.training.models import Trainee
from tiermesh.protocol.training import TrainingSpec

pytestmark = pytest.mark.timeout(300)


def spec(**fields: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {"model_name": "x", "dataset_path": "y", "precision": "fp32", "seq_len": 200, "lora": {"dropout": 0.0}} | fields
    )


@pytest.mark.parametrize("tokens", [200, 500])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "full_finetune"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_what_is_extrapolated_is_what_is_counted(
    tmp_path: Path, kind: Kind, method: str, checkpointing: bool, tokens: int
) -> None:
    """For more rows than were looked at. The model has two layers, as the larger copy has."""
    wanted = spec(method=method, seq_len=tokens)
    told, trainee = both(wanted, build_folder(tmp_path, kind), checkpointing)
    counted, found = _count(trainee, TokenLoss(), wanted, 5, tokens), told.per_pass(5)
    assert found.kept == pytest.approx(counted.kept, rel=0.01)
    assert found.peak == pytest.approx(counted.peak, rel=0.01)
    assert told.trained == sum(one.nbytes for one in trainee.trainables.values())
    assert told.weights == pytest.approx(sum(one.nbytes for one in trainee.model.parameters()), rel=0.01)
    assert sorted(told.shapes) == sorted(tuple(one.shape) for one in trainee.trainables.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_too_long_to_count_are_reckoned_from_shorter_ones(tmp_path: Path, kind: Kind, checkpointing: bool) -> None:
    """1,500 tokens are two documents of 750, and are computed as two of 768: 5 % more of what is quadratic."""
    wanted = spec(seq_len=1500)
    told, trainee = both(wanted, build_folder(tmp_path, kind), checkpointing)
    counted, found = _count(trainee, TokenLoss(), wanted, 3, 1500), told.per_pass(3)
    assert found.kept == pytest.approx(counted.kept, rel=0.06)
    assert found.peak == pytest.approx(counted.peak, rel=0.06)


def both(wanted: TrainingSpec, folder: Path, checkpointing: bool) -> tuple[Footprint, Trainee]:
    """What is told of the model in `folder`, and the model to compare it with."""
    told = footprint(wanted, folder, checkpointing=checkpointing)
    trainee = models.load(wanted, folder)
    trainee.checkpoint(on=checkpointing)
    return told, trainee


@pytest.mark.parametrize(("name", "times"), [("adamw", 2), ("sgd", 0)])
def test_an_optimizer_is_asked_what_it_keeps(name: str, times: int) -> None:
    shapes = [(64, 32), (64, 32), (128,), (8192, 1024)]
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    assert optimizer_bytes(spec(optimizer=name), shapes) == pytest.approx(times * 4 * elements, rel=0.01)


def test_what_is_alive_is_counted_once_and_forgotten_when_it_is_gone() -> None:
    with _Live() as live:
        one = torch.ones(1024)
        view = one.view(32, 32)
        view.add_(1)
        assert live.now == 4096
        two = one * 2
        assert (live.now, live.peak) == (8192, 8192)
        del one, view
        assert live.now == 4096
        assert two.sum() == 4096
    del two
    assert (live.now, live.peak) == (0, 8192)


@pytest.mark.slow
def test_the_worker_writes_an_estimate_and_trains_nothing(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data.jsonl", 200)
    folder = plan_run(
        tmp_path / "run", build_folder(tmp_path / "model"), data, seq_len=64, micro_batch_size=2, max_steps=50
    )
    run_to_end(folder, "--estimate")
    told = json.loads(folder.estimate.read_text())
    assert told["fits"] is True
    assert told["steps"] == 50
    assert told["seconds_low"] < told["seconds"] < told["seconds_high"]
    parts = sum(
        told[name]
        for name in ("runtime_bytes", "weights_bytes", "optimizer_bytes", "activations_bytes", "logits_bytes")
    )
    assert 0 < parts <= told["total_bytes"] <= told["limit_bytes"]
    assert not folder.checkpoints.exists()
    assert not folder.result.exists()


@pytest.mark.slow
@pytest.mark.long
def test_what_does_not_fit_is_said_without_trying(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data.jsonl", 200)
    folder = plan_run(tmp_path / "run", build_folder(tmp_path / "model"), data, seq_len=64, memory_limit=300 << 20)
    run_to_end(folder, "--estimate")
    told = json.loads(folder.estimate.read_text())
    assert told["fits"] is False
    assert told["total_bytes"] > told["limit_bytes"]
    assert told["step_s"] is None
    assert (told["micro_batch_size"], told["checkpointing"]) == (1, True)
