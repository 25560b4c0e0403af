"""A run taken out and put back goes on as if nothing had happened; what would change it is told or refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tiermesh.errors import CheckpointUnusable
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
from tiermesh.kernel.training.state import Conditions, capture, differences, restore

Made = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Made] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True, foreach=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "sgd without a state": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
}


class Learner:
    """A small model with dropout whose data comes from all three generators."""

    def __init__(self, make: Made, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 4)).to(dtype)
        self.optimizer = make(self.model.parameters())
        self.dtype = dtype
        self.steps = 0

    @property
    def trainables(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())

    def step(self) -> float:
        noise = random.random() + float(np.random.standard_normal())
        inputs = torch.randn(4, 8, dtype=self.dtype) + noise
        loss: torch.Tensor = self.model(inputs).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return loss.item()

    def captured(self, *, copy: bool = True) -> Snapshot:
        facts = {"skipped": [[3, 5]]}
        return capture(self.trainables, self.optimizer, step=self.steps, position=0, loss=None, facts=facts, copy=copy)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_run_from_disk_goes_on_to_the_last_bit(tmp_path: Path, make: Made) -> None:
    learner = Learner(make)
    for _ in range(3):
        learner.step()
    Checkpoints(tmp_path).save(learner.captured(copy=False))
    expected = [learner.step() for _ in range(4)]
    weights = copy.deepcopy(learner.trainables)

    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    other = Learner(make)
    other.step()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    restore(found, other.trainables, other.optimizer)
    assert [other.step() for _ in range(4)] == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in other.trainables.items())
    assert found.facts["skipped"] == [[3, 5]]


def test_a_copy_is_out_of_reach_of_later_steps() -> None:
    learner = Learner(OPTIMIZERS["adamw"])
    learner.step()
    before = learner.captured()
    losses = [learner.step() for _ in range(2)]
    for _ in range(2):
        restore(before, learner.trainables, learner.optimizer)
        assert [learner.step() for _ in range(2)] == losses


def test_the_gaussian_that_a_generator_holds_back_is_kept() -> None:
    random.seed(1)
    random.gauss(0, 1)
    np.random.seed(1)
    np.random.standard_normal()
    np.random.RandomState()
    learner = Learner(OPTIMIZERS["sgd"])
    snapshot = learner.captured()
    expected = random.gauss(0, 1), np.random.normal()
    restore(snapshot, learner.trainables, learner.optimizer)
    assert (random.gauss(0, 1), np.random.normal()) == expected


def test_a_state_wider_than_its_weight_stays_so() -> None:
    learner = Learner(OPTIMIZERS["adamw"], torch.bfloat16)
    learner.step()
    for state in learner.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-6
    snapshot = learner.captured()
    restore(snapshot, learner.trainables, learner.optimizer)
    kept = learner.optimizer.state[learner.model[0].weight]["exp_avg"]  # type: ignore[index]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, snapshot.tensors["optimizer/state/0/exp_avg"])


def test_another_model_is_refused_before_anything_is_changed() -> None:
    learner = Learner(OPTIMIZERS["adamw"])
    snapshot = learner.captured()
    weights = copy.deepcopy(learner.trainables)
    for tensors in (
        {**snapshot.tensors, "weight/0.weight": torch.zeros(2, 2)},
        {name: tensor for name, tensor in snapshot.tensors.items() if name != "weight/2.bias"},
    ):
        with pytest.raises(CheckpointUnusable, match="other weights"):
            restore(replace(snapshot, tensors=tensors), learner.trainables, learner.optimizer)
    assert all(torch.equal(weights[name], tensor) for name, tensor in learner.trainables.items())


def test_an_optimizer_with_a_state_of_its_own_kind_is_refused_at_the_first_save() -> None:
    learner = Learner(OPTIMIZERS["sgd"])
    learner.optimizer.state[learner.model[0].weight]["odd"] = object()  # type: ignore[index]
    with pytest.raises(TypeError, match="optimizer/state/0/odd"):
        learner.captured()


SPEC = {"task": "finetune", "micro_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "seed": 1}
THEN = Conditions(
    spec=SPEC,
    model_digest="m",
    data_digest="d",
    packer="1",
    threads=2,
    device="cpu",
    processor="one",
    versions={"torch": "2.13.0"},
)


def test_equal_conditions_promise_equal_bits() -> None:
    here = Conditions.here(SPEC, model_digest="m", data_digest="d", packer="1", device="cpu")
    assert differences(here, Conditions.from_dict(here.to_dict())) == []
    assert here.threads == torch.get_num_threads()
    assert {"torch", "python"} <= here.versions.keys()


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (replace(THEN, threads=1), "2 threads then, 1 now"),
        (replace(THEN, processor="two"), "another processor"),
        (replace(THEN, versions={"torch": "2.14.0"}), "torch 2.13.0 then, 2.14.0 now"),
        (replace(THEN, versions={}), "torch 2.13.0 then, absent now"),
        (replace(THEN, spec={**SPEC, "learning_rate": 1e-5}), "learning_rate was 0.0001, is 1e-05: the run changes"),
        (replace(THEN, spec={**SPEC, "micro_batch_size": 8, "gradient_accumulation_steps": 1}), "gradient_accum"),
        (replace(THEN, spec={**SPEC, "save_interval": 5}), None),
        (replace(THEN, spec={**SPEC, "model_name": "/elsewhere"}), None),
    ],
    ids=["threads", "processor", "torch", "gone", "rate", "batch", "saving", "place"],
)
def test_what_can_differ_is_told(now: Conditions, told: str | None) -> None:
    sentences = differences(THEN, now)
    assert told in sentences[0] if told else sentences == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"method": "lora", "lora": {"dropout": 0.0}}, "losses may differ in their last digits"),
        ({"method": "lora", "lora": {"dropout": 0.05}}, "other inputs are dropped (lora.dropout) from here"),
        ({"method": "full_finetune", "lora": {"dropout": 0.05}}, "losses may differ in their last digits"),
    ],
    ids=["without dropout", "with dropout", "without an adapter"],
)
def test_the_split_changes_more_than_digits_where_inputs_are_dropped(more: dict[str, Any], told: str) -> None:
    then = replace(THEN, spec={**SPEC, **more})
    now = replace(then, spec={**then.spec, "micro_batch_size": 8, "gradient_accumulation_steps": 1})
    assert [sentence.partition(": ")[2] for sentence in differences(then, now)] == [told] * 2


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (replace(THEN, model_digest="n"), "the model's weights"),
        (replace(THEN, data_digest="e"), "the data is not"),
        (replace(THEN, packer="2"), "laid into rows"),
        (replace(THEN, spec={**SPEC, "seed": 2}), "seed was 1 and is 2"),
        (replace(THEN, spec={**SPEC, "micro_batch_size": 8}), "effective batch was 8 and is 16"),
    ],
    ids=["model", "data", "packer", "seed", "batch"],
)
def test_what_would_be_another_run_is_refused(now: Conditions, told: str) -> None:
    with pytest.raises(CheckpointUnusable, match=told) as refused:
        differences(THEN, now)
    assert "--fresh" in str(refused.value)
