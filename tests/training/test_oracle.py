"""TRL is the oracle: the same weights on the same batch have the same loss, and the same gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_model
from tests.training.runs import spec_of

from tiermesh.kernel.training import models
from tiermesh.kernel.training.data.batches import MicroBatch, PairBatch
from tiermesh.kernel.training.loss import NO_LABEL, TokenLoss
from tiermesh.kernel.training.preference import PairLoss

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of transformers, accelerate and torch

CLOSE = 1e-5
KINDS = ("llama", "qwen2", "gpt2")
METHODS = ("lora", "full_finetune")
LEARNT = ("the quick brown fox", "jumps over the lazy dog, naïve café", "a b c")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("method", METHODS)
def test_sft(folder: Path, tmp_path: Path, method: str) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trainee = models.load(spec_of(method=method), folder)
    train_a_little(trainee)
    records = [{"prompt": f"what is {text[:5]}?", "completion": f" {text}"} for text in LEARNT]
    config = SFTConfig(**settings(tmp_path), max_length=64, completion_only_loss=True)
    trainer = SFTTrainer(
        trainee.model, config, train_dataset=Dataset.from_list(records), processing_class=models.load_tokenizer(folder)
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = as_batch(inputs["input_ids"], inputs["labels"])
    trainee.model.eval()  # GPT-2 has dropout of its own
    theirs = gradient_of(trainee, trainer.compute_loss(trainer.model, inputs))
    ours = gradient_of(trainee, TokenLoss().summed(trainee, batch) / batch.targets)
    same(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_dpo(folder: Path, tmp_path: Path, method: str) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    beta = 0.3
    trainee = models.load(spec_of(method=method, task="preference"), folder)
    records = [
        {"prompt": f"what is {text[:5]}?", "chosen": f" {text}", "rejected": f" no {text[:4]}"} for text in LEARNT
    ]
    config = DPOConfig(**settings(tmp_path), max_length=64, beta=beta)
    trainer = DPOTrainer(
        trainee.model,
        trainee.before,
        args=config,
        train_dataset=Dataset.from_list(records),
        processing_class=models.load_tokenizer(folder),
    )
    train_a_little(trainee)  # only now: TRL takes a copy of the adapter as the model as it was
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, NO_LABEL)
    chosen, rejected = (
        as_batch(tokens, of) for tokens, of in zip(inputs["input_ids"].chunk(2), labels.chunk(2), strict=True)
    )
    theirs = gradient_of(trainee, trainer.compute_loss(trainer.model, inputs))
    ours = gradient_of(trainee, PairLoss(beta).summed(trainee, PairBatch(chosen, rejected)) / len(LEARNT))
    same(ours, theirs)
    assert abs(ours[0] - 0.6931) > 1e-3, "nothing was learned yet: the loss would be ln 2 for any model"


def train_a_little(trainee: models.Trainee) -> None:
    """So that the model as it was is another one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in trainee.trainables.values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(LEARNT),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def as_batch(tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> MicroBatch:
    """Padded rows of TRL as rows of ours: labels shifted, padding a document of its own."""
    shifted_BT = labels_BT.roll(-1, dims=1)
    shifted_BT[:, -1] = NO_LABEL
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    return MicroBatch(tokens_BT, positions_BT, shifted_BT, None, float((shifted_BT != NO_LABEL).sum()))


def gradient_of(trainee: models.Trainee, loss: torch.Tensor) -> tuple[float, Mapping[str, torch.Tensor]]:
    trainee.model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {
        name: one.grad.clone() for name, one in trainee.trainables.items() if one.grad is not None
    }


def same(ours: tuple[float, Mapping[str, torch.Tensor]], theirs: tuple[float, Mapping[str, torch.Tensor]]) -> None:
    assert abs(ours[0] - theirs[0]) <= CLOSE
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], atol=CLOSE, rtol=1e-3, msg=name)
